import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
PERMS = {
    "with_linen": 2,
    "with_haiku": 2,
    "with_nnx": 1,
    "with_equinox": 2,
    "without_framework": 1,
}


def test_every_framework_has_an_example():
    assert set(PERMS) == {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("name", PERMS)
def test_the_example_merges_its_networks(name):
    (path,) = (path for path in EXAMPLES if path.stem == name)
    done = runpy.run_path(str(path))
    assert len(done["spec"].perms) == PERMS[name]
    assert done["outputs"].shape == (8, 3)
    assert np.isfinite(done["outputs"]).all()
    # The merged parameters are a pytree of the framework's own structure.
    assert type(done["merged"].params()) is type(done["models"][0])
