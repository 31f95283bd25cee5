"""Networks: models that are merged with each other, checked once."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence

from zipjax.arguments import check_kind, check_sequence
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.merged import Merged, heads_of, known_origin
from zipjax.merging.shared_trunk import common_stop, deepest_cut, is_one
from zipjax.spec.depth import Boundary, Cut
from zipjax.spec.entries import Entries, axes_of
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import (
    check_models,
    host_array,
    is_weight,
    not_finite,
    path_leaves,
    summary,
)
from zipjax.types import Leaves, PyTree, Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """Models to be merged, the specs of their functions, and where the zip stops.

    Made by :meth:`of`, which checks that they fit together.

    Attributes:
      models: the models as they were given: parameter pytrees or merged models.
      specs: the permutation specs, one per model.
      trees: the models' parameters; of a model with heads, with its first head.
      leaves: the parameters by path, one mapping per model. Of models with several
        specs, those that can be shared.
      digest: computes the fingerprint, which is costly, when it is first asked for.
      stop_at: the number of the cut where the zip stops; None if everything is merged.
    """

    models: tuple[PyTree, ...]
    specs: tuple[PermutationSpec, ...]
    trees: tuple[PyTree, ...]
    leaves: tuple[Leaves, ...]
    digest: Callable[[], str]
    stop_at: int | None

    @classmethod
    def of(
        cls,
        models: Sequence[PyTree],
        spec: OneOrEach[PermutationSpec],
        stop_at: str | int | None = None,
    ) -> "Networks":
        """Checks that models, specs and the stop fit together.

        Args:
          models: parameter pytrees of one architecture, or merged models.
          spec: the permutation spec, or a sequence with one per model.
          stop_at: a perm or the number of a cut of the first spec; None merges all
            that the models have in common.

        Raises:
          ValueError: if they do not.
        """
        check_sequence("models", models)
        _check_count(models)
        specs = _each_spec(spec, len(models))
        trees = first_heads(models)
        leaves = _checked_leaves(trees, specs)
        digest = functools.cache(lambda: fingerprint(trees, specs))
        found = cls(tuple(models), specs, tuple(trees), tuple(leaves), digest, None)
        return found.stopping_at(stop_at)

    @classmethod
    def parents_of(cls, merged: Merged, models: Sequence[PyTree]) -> "Networks":
        """Checks that a merged model was made from models like these.

        Args:
          merged: the merged model.
          models: the models that were merged.

        Raises:
          ValueError: if there are more or fewer of them, or if they have other
            parameters, widths or specs.
        """
        origin = known_origin(merged)
        if len(models) != origin.num_models:
            raise ValueError(
                f"the merged model was made from {origin.num_models} models, but these "
                f"are {len(models)}: pass the models that were merged, in their order"
            )
        return cls.of(models, origin.spec, origin.stop_at)

    def stopping_at(self, stop_at: str | int | None) -> "Networks":
        """Returns the same models with another stop; see :meth:`of`."""
        return dataclasses.replace(self, stop_at=self._cut_number(stop_at))

    def check_finite(self) -> None:
        """Checks that no parameter holds NaN or infinity.

        Raises:
          ValueError: naming the parameters of the first model that does.
        """
        for number, tree in enumerate(self.trees):
            if guilty := not_finite(path_leaves(tree)):
                raise ValueError(
                    f"parameters {summary(guilty)} of model {number} are not finite "
                    "(NaN or infinity): repair or replace this model"
                )

    def __len__(self) -> int:
        return len(self.models)

    @property
    def spec(self) -> PermutationSpec:
        """The first model's spec, whose trunk all models share."""
        return self.specs[0]

    @property
    def stop(self) -> Cut:
        """The cut where the zip stops; the last one if everything is merged."""
        last = len(self.spec.cuts)
        return self.spec.stop(last if self.stop_at is None else self.stop_at)

    @property
    def perms(self) -> tuple[str, ...]:
        """The zipped perms, in depth order."""
        return self.stop.perms

    @functools.cached_property
    def trunk(self) -> frozenset[str]:
        """Paths of the parameters that are merged."""
        if self.stop_at is None:
            return frozenset(self.spec.entries)
        return self.spec.trunk(self.stop_at)

    @functools.cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """Where each model goes on after a cut inside a stream; none after others."""
        if self.stop_at is None or self.stop.boundary is None:
            return ()
        return tuple(spec.boundary_after(self.trunk) for spec in self.specs)

    @property
    def common_perms(self) -> tuple[str, ...]:
        """The perms that any zip of these models can match."""
        return self.spec.stop(deepest_cut(self.specs)).perms

    @property
    def fingerprint(self) -> str:
        """A digest of parameters and specs; moments carry that of their networks."""
        return self.digest()

    def source(self, stops: bool = True) -> str:
        """Returns what moments of these networks carry.

        Args:
          stops: whether they are for a zip that stops where this one does.
        """
        stop = f", up to cut {self.stop_at}" if stops else ""
        return self.fingerprint + stop

    def _cut_number(self, stop_at: str | int | None) -> int | None:
        if is_one(self.specs):
            if stop_at is not None:
                return self.spec.stop(stop_at).number
            ignored = self.spec.unread
            return len(self.spec.cuts) if _differing(self.leaves, ignored) else None
        return common_stop(self.specs, stop_at)


def first_heads(models: Sequence[PyTree]) -> list[PyTree]:
    """Returns every model's parameters, each with its first head.

    Raises:
      ValueError: if the heads of a merged model are different functions, or its trunk
        ends inside a residual stream.
    """
    for number, model in enumerate(models):
        if isinstance(model, Merged) and model.own is not None:
            raise ValueError(
                f"model {number} is a merged one whose trunk ends inside a residual "
                "stream: such a model cannot be merged again. Merge all models at "
                "once, or stop the first zip at a closed cut"
            )
        if isinstance(model, Merged) and isinstance(model.spec, tuple):
            raise ValueError(
                f"model {number} is a merged one whose heads are different functions: "
                "such a model cannot be merged again. Merge all models at once"
            )
    return [heads_of(model)[0] for model in models]


def fingerprint(trees: Sequence[PyTree], specs: Sequence[PermutationSpec]) -> str:
    """Returns a digest of parameters and specs.

    Args:
      trees: parameter pytrees.
      specs: their specs. Notes do not count: they name lines of the user's code, and
        moving these changes no unit.
    """
    one = one_or_each(specs)
    content = [
        dataclasses.replace(own, notes=None).to_json()
        for own in (one if isinstance(one, tuple) else [one])
    ]
    sums = [zlib.crc32("".join(content).encode())]
    for tree in trees:
        total = 0
        for path, leaf in path_leaves(tree).items():
            total = zlib.crc32(path.encode(), total)
            total = zlib.crc32(host_array(leaf).tobytes(), total)
        sums.append(total)
    return f"spec {sums[0]:08x}, models " + " ".join(f"{x:08x}" for x in sums[1:])


def source_of(models: Sequence[PyTree], spec: OneOrEach[PermutationSpec]) -> str:
    """Returns the fingerprint of models and spec by which moments are recognised.

    Args:
      models: parameter pytrees, or merged models.
      spec: the permutation spec, or a sequence with one per model.
    """
    check_sequence("models", models)
    return fingerprint(first_heads(models), _each_spec(spec, len(models)))


def _each_spec(
    spec: OneOrEach[PermutationSpec], count: int
) -> tuple[PermutationSpec, ...]:
    """Returns one spec per model, after checking that they are specs."""
    specs = each(spec, count, "specs")
    for own in specs:
        check_kind("spec", own, PermutationSpec)
    return specs


def _check_count(models: Sequence[PyTree]) -> None:
    if not models:
        raise ValueError(
            "there are no models: pass a sequence of parameter pytrees, one per model"
        )


def _checked_leaves(
    trees: Sequence[PyTree], specs: Sequence[PermutationSpec]
) -> Sequence[Leaves]:
    """Returns every model's leaves by path; shapes may differ only in the outputs."""
    shared = specs[0].trunk(deepest_cut(specs))
    all_leaves = check_models(trees, None if is_one(specs) else shared)
    for path in _differing(all_leaves, specs[0].unread):
        shapes = [leaves[path].shape for leaves in all_leaves]
        if path in shared or _differs_in_perms(specs[0].entries[path], shapes):
            raise ValueError(_other_shapes(path, all_leaves))
    for number, (tree, spec) in enumerate(zip(trees, specs, strict=True)):
        spec.validate(tree)
        _check_units(number, path_leaves(tree), spec)
    return all_leaves


def _check_units(number: int, leaves: Leaves, spec: PermutationSpec) -> None:
    """Checks that all parameters with units hold floating-point numbers.

    Others are carried over: their units would stay where the weights' units move.
    """
    for path, leaf in leaves.items():
        if not is_weight(leaf) and any(any(axes_of(x)) for x in spec.entries[path]):
            raise ValueError(
                f"parameter {path!r} of model {number} is {leaf.dtype}, but the spec "
                f"ties its axes to perms, {spec.entries[path]}, and only floating-"
                "point numbers can be averaged: cast it to a floating dtype "
                "(dequantised, if it is quantised), or give its axes no perms"
            )


def _differing(all_leaves: Sequence[Leaves], ignored: frozenset[str]) -> list[str]:
    """Lists the paths of parameters whose shapes differ between models."""
    first, *others = all_leaves
    return [
        path
        for path, leaf in first.items()
        if path not in ignored and any(m[path].shape != leaf.shape for m in others)
    ]


def _differs_in_perms(entries: Entries, shapes: Sequence[Shape]) -> bool:
    sizes = zip(entries, *shapes, strict=True)
    return any(any(axes_of(entry)) and len({*own}) > 1 for entry, *own in sizes)


def _other_shapes(path: str, all_leaves: Sequence[Leaves]) -> str:
    shapes = [list(leaves[path].shape) for leaves in all_leaves]
    remedy = (
        "Adapters of other ranks have no units in common: add every pair's product to "
        "the weights that it adapts, and merge these without the pairs"
        if "lora" in path.lower()
        else "Merged layers need one width: merge models of equal widths, or stop the "
        "zip before the layers that differ, with one spec per model"
    )
    return (
        f"parameter {path!r} has the shapes {shapes} in the models: only outputs "
        f"(after the last cut) may differ in shape. {remedy}"
    )
