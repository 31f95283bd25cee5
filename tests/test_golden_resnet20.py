"""A PyTorch ResNet-20 and what ZipIt!'s reference code makes of it, step by step."""

import functools
import json

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import first_models, relative_error
from zipjax.interop.torch import to_flax
from zipjax.models import resnet
from zipjax.trees import path_leaves

NET = resnet.ResNet20(outputs=16, width=0.5)
SPEC = resnet.spec(NET)
RUNS = {
    "zip_full": zipjax.zipit(alpha=0.3, beta=0.5),
    "permute_full": zipjax.permute(),
    "zip_stage2": zipjax.zipit(alpha=0.3, beta=0.5),
    "zip_three": zipjax.zipit(alpha=0.3, beta=0.5),
}


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "resnet20_end_to_end.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def meta(shared):
    return json.loads((shared / "golden" / "resnet20_end_to_end.json").read_text())


@pytest.fixture(scope="module")
def nodes(meta):
    """The perm of every node of the reference, both in depth order."""
    return dict(zip(meta["nodes"], SPEC.perms, strict=True))


@pytest.fixture(scope="module")
def models(golden):
    return [flax_variables(golden, f"model_{name}") for name in "abc"]


@pytest.fixture(scope="module")
def moments(golden, models):
    images = golden["images"]
    batches = [images[:48], images[48:]]
    return zipjax.collect_moments(NET.apply, models, SPEC, batches, positions="all")


def flax_variables(golden, prefix):
    """Converts one of the reference's state dictionaries."""
    state = {
        name.removeprefix(f"{prefix}/"): value
        for name, value in golden.items()
        if name.startswith(f"{prefix}/")
    }
    return to_flax(NET, state)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(NET.apply)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_forward(golden, models, forward, number):
    SPEC.validate(models[number])
    outputs = forward(models[number], golden["eval_images"])
    expected = golden[f"model_{'abc'[number]}_out"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_the_nodes_are_tapped_where_the_perms_are(meta, nodes):
    """The reference's nodes, named by the modules whose inputs it taps."""
    for node, modules in meta["nodes"].items():
        perm = nodes[node]
        if perm.startswith("layer"):
            assert modules == [perm.replace("_", ".") + ".conv2"]
        elif perm != "stage3":
            following = f"layer{int(perm[-1]) + 1}.0.conv1"
            assert following in modules
        else:
            assert modules == ["avgpool"]


@pytest.mark.parametrize("number", range(12))
def test_covariances(golden, meta, nodes, moments, number):
    node = list(meta["nodes"])[number]
    two = first_models(moments, SPEC, 2)[nodes[node]]
    assert relative_error(two.covariance(), golden[f"covariance/node{node}"]) < 1e-4


@functools.cache
def settings(shared, tag):
    path = shared / "golden" / "resnet20_end_to_end.json"
    (run,) = [r for r in json.loads(path.read_text())["runs"] if r["tag"] == tag]
    return run


@pytest.fixture(scope="module", params=RUNS)
def run(request, shared, models, moments, nodes):
    """Tag, assignments and merged model of one of the reference's runs."""
    tag = request.param
    recorded = settings(shared, tag)
    recipe, count = RUNS[tag], recorded["num_models"]
    if "a" in recorded:
        given = recipe.matcher.keywords
        assert (given["alpha"], given["beta"]) == (recorded["a"], recorded["b"])
    options = {
        "moments": first_models(moments, SPEC, count),
        "stop_at": None if recorded["stop"] is None else nodes[str(recorded["stop"])],
    }
    chosen = models[:count]
    assignments = zipjax.match(chosen, SPEC, recipe, **options)
    merged = zipjax.merge(chosen, SPEC, recipe, **options)
    return tag, assignments, merged


def column_order(golden, tag, node, assignment):
    """Returns the reference's merged unit for each of ours."""
    theirs = golden[f"{tag}/node{node}/unmerge"].argmax(1)
    pairs = {(ours, other) for ours, other in zip(assignment, theirs, strict=True)}
    # Unit for unit: a one-to-one relation of merged units.
    units = assignment.max() + 1
    assert len(pairs) == len(set(theirs)) == units
    return np.array([other for _, other in sorted(pairs)])


def test_every_zipped_node_is_matched_unit_for_unit(golden, nodes, run):
    tag, assignments, merged = run
    recorded = {name.split("/")[1] for name in golden if name.startswith(tag + "/node")}
    assert {f"node{node}" for node, p in nodes.items() if p in assignments} == recorded
    for node, perm in nodes.items():
        if perm not in assignments:
            continue
        order = column_order(golden, tag, node, assignments[perm])
        count = assignments[perm].size // SPEC.sizes[perm]
        merge, unmerge = zipjax.merge_matrices(assignments[perm], count)
        theirs = golden[f"{tag}/node{node}/unmerge"]
        np.testing.assert_array_equal(unmerge, theirs[:, order])
        # Theirs carry a factor N, and 1e-5 in the denominator.
        theirs = golden[f"{tag}/node{node}/merge"][order] / count
        np.testing.assert_allclose(merge, theirs, rtol=2e-5, atol=1e-7)
        assert merged.spec.sizes[perm] == merge.shape[0]


def test_merged_parameters(golden, nodes, run):
    tag, assignments, merged = run
    if f"{tag}/merged/conv1.weight" not in golden:
        assert merged.num_outputs == 2  # Recorded for full zips only.
        return
    orders = {
        perm: column_order(golden, tag, node, assignments[perm])
        for node, perm in nodes.items()
    }
    reference = flax_variables(golden, f"{tag}/merged")
    expected = path_leaves(zipjax.permute_params(reference, SPEC, orders))
    found = path_leaves(merged.params())
    assert set(found) == set(expected)
    for path, leaf in found.items():
        # Their 1e-5 in the denominator of M.
        assert relative_error(leaf, expected[path]) < 1e-4, path


def outputs(golden, merged):
    found = zipjax.apply(NET.apply, merged, golden["eval_images"])
    return np.stack(found) if merged.heads else np.asarray(found)[None]


def test_outputs_before_the_reset(golden, run):
    tag, _, merged = run
    expected = golden[f"{tag}/out_before_bn_reset"]
    assert relative_error(outputs(golden, merged), expected) < 1e-4


def test_outputs_after_the_reset(golden, run):
    tag, _, merged = run
    # The reference ran over batches of 32 with PyTorch's variances.
    batches = np.split(golden["images"], 3)
    reset = zipjax.reset_batch_stats(NET.apply, merged, batches, ddof=1)
    expected = golden[f"{tag}/out_after_bn_reset"]
    assert relative_error(outputs(golden, reset), expected) < 1e-4
