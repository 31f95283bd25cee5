"""A spec as text: its perms with their members, and what is frozen and why."""

from zipjax.arguments import check_kind
from zipjax.spec.entries import Entry, Family, Fixed, Product, Sum
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import collections


def explain(spec: PermutationSpec) -> str:
    """Returns a spec as text: every perm with its members, and what is frozen and why.

    >>> from zipjax.spec.entries import Axis
    >>> from zipjax.spec.permutation_spec import Perm
    >>> entries = {"w1": (None, Axis("h", "out")), "w2": (Axis("h", "in"), None)}
    >>> print(explain(PermutationSpec(entries, {"h": Perm(8)})))
    1 perms, 2 layers, 1 cuts
    h: 8 units, depth 1
        out w1[1]
        in  w2[0]
    <BLANKLINE>
    frozen axes:
        w1[0]: declared
        w2[1]: declared
    """
    check_kind("spec", spec, PermutationSpec)
    lines = [*_perm_lines(spec), "", *_frozen_lines(spec)]
    return "\n".join(lines)


def _perm_lines(spec: PermutationSpec) -> list[str]:
    notes = spec.notes
    lines = [f"{len(spec.perms)} perms, {spec.layers} layers, {len(spec.cuts)} cuts"]
    spans = spec.spans
    for name, perm in spec.perms.items():
        low, high = spans[name]
        depth = f"depth {low}" if low == high else f"depths {low} to {high}"
        inside = f", in every {' x '.join(perm.groups)}" if perm.groups else ""
        lines.append(f"{name}: {perm.size} units{inside}, {depth}")
        if notes is not None and name in notes.taps:
            lines.append(f"    read at {notes.taps[name]}")
        for path, number, axis in spec.members(name):
            lines.append(f"    {axis.role:3} {path}[{number}]")
    return lines


def _frozen_lines(spec: PermutationSpec) -> list[str]:
    lines = ["frozen axes:"]
    for path, entries in spec.entries.items():
        for number, entry in enumerate(entries):
            if spec.notes is None:
                why = "declared" if _is_frozen(entry) else None
            else:
                why = spec.notes.frozen[path][number]
            if why is not None:
                lines.append(f"    {path}[{number}]: {why}")
    if spec.unread:
        apart = spec.entries.keys() - spec.unread
        names = ", ".join(collections(sorted(spec.unread), apart))
        lines += ["", f"not read by the function: {names}"]
    return lines


def _is_frozen(entry: Entry) -> bool:
    match entry:
        case None | Fixed():
            return True
        case Product(children) | Sum(children) | Family(_, children):
            return any(map(_is_frozen, children))
    return False
