"""Stacked layers: each has its own order of units, read inside the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from benchmarks.zoo.case import linen, normal
from tests.networks import relative_error
from tests.zoo import stacks
from tests.zoo.stacks import CASES, LAYERS, residual
from zipjax.similarity.activations import activations
from zipjax.trees import path_leaves

BLOCKS = "params/blocks"
PAIRS = {
    "encoder": (stacks.Encoder(), stacks.Encoder(scanned=False), stacks.PATCHES),
    "remat": (
        stacks.Encoder(remat=True),
        stacks.Encoder(scanned=False),
        stacks.PATCHES,
    ),
    "decoder": (stacks.Decoder(), stacks.Decoder(scanned=False), stacks.IDS),
}


def models_of(module, inputs):
    """Two networks that differ a little, as two trained from one start do."""
    first = linen(module, (inputs,), 0)
    rng = np.random.default_rng(9)
    second = jax.tree.map(
        lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32),
        first.params,
    )
    return first.apply_fn, [first.params, second]


@pytest.mark.parametrize("name", PAIRS)
def test_scanned_layers_are_those_of_the_unrolled_network(name):
    """Perms, correlations, assignments and the merged function, layer by layer."""
    scanned, unrolled, inputs = PAIRS[name]
    scan_fn, models = models_of(scanned, inputs)
    layer_fn, apart = unrolled.apply, [zipjax.unstack_layers(m, BLOCKS) for m in models]
    np.testing.assert_allclose(
        scan_fn(models[0], inputs), layer_fn(apart[0], inputs), rtol=1e-4, atol=1e-5
    )
    more = np.concatenate([np.roll(inputs, k, axis=1) for k in range(5)])
    found = results(scan_fn, models, more)
    expected = results(layer_fn, apart, more)
    spec = found[0]
    seen = set()
    for perm in spec.perms:
        elements = spec.elements(perm)
        assert elements in (None, LAYERS)
        for k in range(elements or 1):
            same = perm.replace("/blocks/", f"/blocks_{k}/")
            seen.add(same)
            compare(perm, k if elements else None, same, found, expected)
    assert seen == set(expected[0].perms)
    together, separate = found[3], expected[3]
    assert (
        relative_error(
            scan_fn(together.params(), inputs), layer_fn(separate.params(), inputs)
        )
        < 1e-4
    )
    joined = zipjax.unstack_layers(together.params(), BLOCKS)
    leaves = path_leaves(separate.params())
    for path, leaf in path_leaves(joined).items():
        np.testing.assert_allclose(leaf, leaves[path], rtol=1e-4, atol=1e-5)


def results(apply_fn, models, inputs):
    spec = zipjax.infer_spec(apply_fn, models[0], inputs)
    device = jax.local_devices()[:1]
    moments = zipjax.collect_moments(apply_fn, models, spec, [inputs], devices=device)
    recipe = zipjax.zipit(beta=0.0)
    assignments = zipjax.match(models, spec, recipe, moments=moments)
    return spec, moments, assignments, zipjax.merge_units(models, spec, assignments)


def compare(perm, element, same, found, expected):
    """Compares a perm, in one layer, with that of the unrolled network."""
    assignment = found[2][perm]
    if element is not None:
        assignment = assignment[element]
    np.testing.assert_array_equal(assignment, expected[2][same])
    assert (perm in found[1]) == (same in expected[1])
    if perm in found[1]:
        similarity = zipjax.activation_similarity(found[1][perm])
        similarity = similarity if element is None else similarity[element]
        np.testing.assert_allclose(
            similarity, zipjax.activation_similarity(expected[1][same]), atol=1e-4
        )


def test_outputs_of_all_layers_that_are_read_leave_every_layer_its_order():
    case = linen(stacks.Encoder(deep=True), (stacks.PATCHES,), 0)
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    apart = linen(stacks.Encoder(deep=True, scanned=False), (stacks.PATCHES,), 0)
    unrolled = zipjax.infer_spec(apart.apply_fn, apart.params, *apart.inputs)
    assert sorted(spec.sizes.values()) == sorted(unrolled.sizes.values())
    zipjax.verify_spec(
        case.apply_fn, case.params, spec, *case.inputs, key=jax.random.key(0)
    )


def steps(x, params, order):
    """Layers read by position, in some order."""
    names = ("up", "bias", "down")

    def body(x, k):
        return residual(x, *(params[name][k] for name in names)), None

    return jax.lax.scan(body, x, order)[0]


def counted(step, start, reverse=False):
    def body(carry, _):
        x, k = carry
        own = (params_at(name, k) for name in ("up", "bias", "down"))
        return (residual(x, *own), k + step), None

    params = {}

    def params_at(name, k):
        return params[name][k % LAYERS]

    def run(x, given):
        params.update(given)
        (x, _), _ = jax.lax.scan(
            body, (x, jnp.int32(start)), None, LAYERS, reverse=reverse
        )
        return x

    return run


def beside_rows(reverse):
    """Half of a layer is a row, the other half is read at a position."""

    def run(x, params):
        def body(carry, row):
            x, k = carry
            x = residual(x, params["up"][k], params["bias"][k], row)
            return (x, k + 1), None

        start = (x, jnp.int32(0))
        return jax.lax.scan(body, start, params["down"], reverse=reverse)[0][0]

    return run


# How the layers' positions are computed, and whether iteration i reads layer i alone.
POSITIONS = {
    "in order": (lambda x, p: steps(x, p, jnp.arange(LAYERS)), True),
    "backwards": (lambda x, p: steps(x, p, jnp.arange(LAYERS)[::-1]), False),
    "the first twice": (lambda x, p: steps(x, p, jnp.array([0, 0, 1])), False),
    "a constant": (lambda x, p: steps(x, p, jnp.array([1, 1, 1])), False),
    "carried": (counted(1, 0), True),
    "carried from one": (counted(1, 1), False),
    "carried by twos": (counted(2, 0), False),
    "carried backwards": (counted(1, 0, reverse=True), False),
    "carried beside rows": (beside_rows(reverse=False), True),
    "carried beside rows, backwards": (beside_rows(reverse=True), False),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_followed_and_never_guessed(name):
    layers, each = POSITIONS[name]
    case = CASES["fori-indexed"]()

    def apply_fn(params, x):
        return layers(x @ params["first"], params) @ params["last"]

    x = normal(8, 4)
    spec = zipjax.infer_spec(apply_fn, case.params, x)
    assert spec.elements("up") == (LAYERS if each else None)
    zipjax.verify_spec(apply_fn, case.params, spec, x, key=jax.random.key(0))


def test_the_start_of_a_loop_is_not_all_of_it():
    """A kernel that a ``while`` loop adds up, without data, at a counter."""

    def apply_fn(params, x):
        def body(carry):
            k, total = carry
            return k + 1, total + params["up"][k]

        start = (jnp.int32(0), jnp.zeros((8, 10)))
        _, kernel = jax.lax.while_loop(lambda c: c[0] < LAYERS, body, start)
        return jnp.tanh(x @ params["first"] @ kernel) @ params["down"][0]

    params, x = CASES["fori-indexed"]().params, normal(8, 4)
    spec = zipjax.infer_spec(apply_fn, params, x)
    zipjax.verify_spec(apply_fn, params, spec, x, key=jax.random.key(0))


def test_one_compiled_loop_reads_all_layers():
    """The program that is compiled does not grow with the number of layers."""

    def equations(count):
        like = {
            "first": (4, 8), "up": (count, 8, 10), "bias": (count, 10),
            "down": (count, 10, 8), "last": (8, 3),
        }  # fmt: skip
        params = {k: jnp.ones(s) for k, s in like.items()}

        def apply_fn(params, x):
            names = ("up", "bias", "down")
            rows = tuple(params[name] for name in names)
            x, _ = jax.lax.scan(
                lambda x, own: (residual(x, *own), None),
                x @ params["first"],
                rows,
            )
            return x @ params["last"]

        spec = zipjax.infer_spec(apply_fn, params, normal(8, 4))
        traced = jax.make_jaxpr(lambda p, x: activations(apply_fn, p, spec, (x,)))(
            params, normal(8, 4)
        )
        return len(traced.jaxpr.eqns)

    assert equations(2) == equations(40)
