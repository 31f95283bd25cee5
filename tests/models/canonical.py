"""What specs say, up to the names of their perms."""

from typing import Any

from zipjax.spec.entries import axes_of, entry_to_json
from zipjax.spec.permutation_spec import PermutationSpec


def canonical(spec: PermutationSpec) -> dict[str, Any]:
    """Returns a spec's content with its perms numbered as they first occur.

    The parameters are taken in the order of their names, since the order of those side
    by side in a network (a scale and a bias) is a matter of taste.
    """
    paths = sorted(spec.entries)
    found = (
        axis.perm
        for path in paths
        for entry in spec.entries[path]
        for axis in axes_of(entry)
    )
    names = {name: number for number, name in enumerate(dict.fromkeys(found))}

    def renamed(data: Any) -> Any:
        match data:
            case {"perm": name, "role": role}:
                return (names[name], role)
            case dict():
                return {key: renamed(value) for key, value in data.items()}
            case list():
                return [renamed(value) for value in data]
        return data

    return {
        "entries": {
            path: [renamed(entry_to_json(e)) for e in spec.entries[path]]
            for path in paths
        },
        "perms": {
            names[name]: (perm.size, [names[group] for group in perm.groups])
            for name, perm in spec.perms.items()
        },
        "order": [names[name] for name in spec.perms],
        "spans": {names[name]: span for name, span in spec.spans.items()},
        "layers": spec.layers,
        # Those inside streams are inferred only.
        "cuts": [
            (cut.layers, [names[name] for name in cut.perms], spec.trunk(cut.number))
            for cut in spec.cuts
            if cut.boundary is None
        ],
    }
