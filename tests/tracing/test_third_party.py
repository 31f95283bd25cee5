"""Models of other packages, as they come: all perms are found, and they are perms."""

import importlib.metadata
import warnings

import jax
import numpy as np
import pytest

from benchmarks.zoo.third_party import CASES
from zipjax import explain
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec

# Slow to run, though not to infer: their perms are counted only.
LARGE = {"dm-haiku: ResNet50", "keras: EfficientNetB0"}


@pytest.mark.parametrize("name", CASES)
def test_number_of_perms_and_invariance(name: str) -> None:
    entry = CASES[name]
    try:
        importlib.metadata.version(entry.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {entry.package}: pip install -e '.[zoo]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Other packages' own.
        case = entry.make()
        spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    assert len(spec.perms) == case.perms, explain(spec)
    if name not in LARGE:
        verify_spec(
            case.apply_fn,
            case.params,
            spec,
            *case.inputs,
            key=jax.random.key(0),
            trials=1,
        )


def test_reasons_are_the_packages_own_lines() -> None:
    pytest.importorskip("attnax", reason="needs attnax: pip install -e '.[zoo]'")
    case = CASES["attnax: TransformerDecoder (GQA, RoPE)"].make()
    text = explain(infer_spec(case.apply_fn, case.params, *case.inputs))
    assert "attnax/embeddings.py" in text
    assert "rope_inv_freq" in text


def test_parameters_of_the_zoo_are_not_trivial() -> None:
    case = CASES["jax-resnet: ResNet (bottleneck)"].make()
    leaves = jax.tree.leaves(case.params)
    assert all(np.ptp(leaf) > 0.1 for leaf in leaves if leaf.size > 8)
