"""One process of several that merge together; run by test_hosts.py.

    python -m tests.hosts_worker FOLDER NUMBER COUNT PORT

Writes what it got to FOLDER/COUNT_NUMBER.npz.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import zipjax
from tests.networks import FlattenNet, flatten_spec, images, variables
from zipjax.trees import path_leaves

FOLDER, NUMBER, COUNT, PORT = Path(sys.argv[1]), *map(int, sys.argv[2:])
if COUNT > 1:
    jax.distributed.initialize(f"127.0.0.1:{PORT}", COUNT, NUMBER)

SPEC = flatten_spec(4)
NET = FlattenNet()
MODELS = [variables(NET, (4, 4, 3), seed) for seed in (1, 2)]
X = images(48, (4, 4, 3))
LABELS = np.arange(48) % 2


def share(batches):
    """Every process reads its own batches."""
    return batches[NUMBER::COUNT]


def results():
    """Returns what a merge on several hosts gives, as arrays by name."""
    batches = share(np.split(X, 8))
    options = {"devices": jax.local_devices()[:1], "positions": "all"}
    moments = zipjax.collect_moments(NET.apply, MODELS, SPEC, batches, **options)
    narrow = zipjax.collect_moments(
        NET.apply, MODELS, SPEC, batches, memory_limit=300, **options
    )
    merged = zipjax.merge(MODELS, SPEC, zipjax.zipit(), moments=moments)
    merged = zipjax.reset_batch_stats(NET.apply, merged, batches)
    refitted = zipjax.refit(NET.apply, MODELS, merged, batches)
    zipjax.save(FOLDER / f"merged{COUNT}", refitted)
    scores = zipjax.evaluate(
        lambda x: zipjax.apply(NET.apply, refitted, x),
        list(zip(batches, share(np.split(LABELS, 8)), strict=True)),
        tasks=[[0], [1]],
    )
    key = jax.random.key(0)
    mudsc = zipjax.match(MODELS, SPEC, zipjax.mudsc(0.5), moments=moments, key=key)
    found = {"joint": scores.joint, "count": scores.count}
    found |= {f"m2 {perm}": moment.m2 for perm, moment in moments.items()}
    found |= {f"panels {perm}": moment.m2 for perm, moment in narrow.items()}
    found |= {f"samples {perm}": moment.count for perm, moment in moments.items()}
    found |= {f"mudsc {perm}": units for perm, units in mudsc.items()}
    found |= {f"params {p}": x for p, x in path_leaves(refitted.params()).items()}
    return {**found, **shared_arrays(), **refusals()}


def shared_arrays():
    """Returns moments of arrays that are sharded over all processes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.make_array_from_callback(X.shape, rows, lambda index: X[index])
    moments = zipjax.collect_moments(NET.apply, MODELS, SPEC, [whole], positions="all")
    return {f"global {perm}": moment.m2 for perm, moment in moments.items()}


def refusals():
    """Returns whether all processes refuse what only the last one was given."""
    batches = [X] if NUMBER < COUNT - 1 else [np.full_like(X, np.nan)]
    refused = 0
    for attempt in (
        lambda: zipjax.collect_moments(NET.apply, MODELS, SPEC, batches),
        lambda: zipjax.reset_batch_stats(NET.apply, MODELS[0], batches),
        lambda: zipjax.merge(MODELS, SPEC, zipjax.zipit(), moments={}),
        lambda: zipjax.save(
            FOLDER / f"merged{COUNT}", zipjax.merge(MODELS, SPEC, zipjax.average())
        ),
    ):
        try:
            attempt()
        except ValueError:
            refused += 1
    return {"refused": refused}


np.savez(FOLDER / f"{COUNT}_{NUMBER}.npz", **results())
