"""A merge step by step: the first time, and with other parameters."""

from typing import Any

import jax

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import compilations, cpu_timed


def measure(smoke: bool) -> dict[str, Any]:
    """Returns CPU seconds and compilations of every step."""
    if smoke:
        return {own.name: _steps(own) for own in [pair("two blocks", 8, 8)]}
    chosen = [pair("ResNet-50", 8, 8, 64), pair("ViT-B", 2, 2, 224)]
    return {own.name: _steps(own) for own in chosen}


def _steps(own: Pair) -> dict[str, Any]:
    zipit = zipjax.zipit(alpha=0.3, beta=0.125)
    found: dict[str, Any] = {}

    def step(name: str, function: Any) -> Any:
        with compilations() as compiled:
            result, found[f"{name}, CPU s"] = cpu_timed(function)
        found[f"{name}, compilations"] = len(compiled)
        return result

    def merged(models: list[Any], recipe: zipjax.Recipe, title: str) -> None:
        moments = step(
            f"moments{title}",
            lambda: zipjax.collect_moments(own.apply_fn, models, own.spec, own.batches),
        )
        units = step(
            f"match{title}",
            lambda: zipjax.match(models, own.spec, recipe, moments=moments),
        )
        whole = step(
            f"merge{title}",
            lambda: zipjax.merge_units(models, own.spec, units).params(),
        )
        step(
            f"reset{title}",
            lambda: zipjax.reset_batch_stats(own.apply_fn, whole, own.batches),
        )

    x = own.batches[0]
    step("infer", lambda: zipjax.infer_spec(own.apply_fn, own.models[0], x))
    merged(own.models, zipit, "")
    # Other parameters of the same shapes, another recipe.
    swapped = [jax.tree.map(lambda x: 0.5 * x, model) for model in own.models[::-1]]
    jax.block_until_ready(swapped)
    merged(swapped, zipjax.permute(), ", again")
    return found
