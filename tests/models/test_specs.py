"""The declared specs: complete, true, and those that inference finds."""

import math
from collections.abc import Iterator

import jax
import jaxtyping
import pytest

from benchmarks.zoo.case import normal, random_params
from tests.models.canonical import canonical
from tests.models.catalog import ALL, FULL, TINY, Network
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec

_TOLERANCE = 1e-5


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the checks of annotations off: they make large networks slow to read."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", ALL)
def test_fits_the_parameters_with_the_perms_and_cuts_derived_by_hand(name: str) -> None:
    network = ALL[name]
    spec = network.spec
    spec.validate(network.shapes)
    assert len(spec.perms) == network.perms, dict(spec.perms)
    assert tuple(cut.layers for cut in spec.cuts) == network.cuts
    assert spec.layers == network.layers
    assert PermutationSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", TINY)
def test_equals_the_inferred_spec(name: str) -> None:
    check_equals_inferred(TINY[name])


@pytest.mark.parametrize("name", FULL)
@pytest.mark.usefixtures("unchecked")
def test_equals_the_inferred_spec_at_full_size(name: str) -> None:
    check_equals_inferred(FULL[name])


def check_equals_inferred(network: Network) -> None:
    inferred = infer_spec(network.model.apply, network.shapes, network.images)
    expected, found = canonical(network.spec), canonical(inferred)
    for key, value in expected.items():
        assert found[key] == value


@pytest.mark.parametrize("name", TINY)
def test_describes_the_function(name: str) -> None:
    network = TINY[name]
    params, x = random_params(network.shapes), normal(*network.images.shape)
    key = jax.random.key(0)
    verify_spec(
        network.model.apply, params, network.spec, x, key=key, tolerance=_TOLERANCE
    )


@pytest.mark.parametrize("name", [name for name in FULL if FULL[name].parameters])
def test_has_as_many_parameters_as_published(name: str) -> None:
    leaves = jax.tree_util.tree_leaves(FULL[name].shapes["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == FULL[name].parameters
