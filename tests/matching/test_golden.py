"""Zip and align against what ZipIt!'s and MuDSC's reference implementations return."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from zipjax.matching.align import match_align
from zipjax.matching.grouped import match_grouped_align, match_grouped_zip
from zipjax.matching.zipping import match_zip

SHARED = os.environ.get("ZIPJAX_SHARED")
GOLDEN = Path(SHARED or ".") / "golden"
pytestmark = pytest.mark.skipif(
    SHARED is None, reason="ZIPJAX_SHARED does not name the folder of the golden files"
)


def cases(kind):
    if SHARED is None:
        return ["golden"]
    listed = json.loads((GOLDEN / "matching.json").read_text())
    chosen = [case for case in listed if case["kind"] == kind]
    return [pytest.param(case, id=case["key"]) for case in chosen]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "matching.npz") as arrays:
        return dict(arrays)


def correlation(covariance):
    covariance = covariance.astype(np.float64)
    deviation = np.sqrt(np.diag(covariance))
    return covariance / np.outer(deviation, deviation)


def check_same_partition(assignment, unmerge):
    # Row u of the unmerge matrix is one-hot at the column of unit u.
    np.testing.assert_array_equal(unmerge.sum(1), 1)
    together = assignment[:, None] == assignment
    np.testing.assert_array_equal(together, unmerge @ unmerge.T == 1)


@pytest.mark.parametrize("case", cases("zip"))
def test_zip_is_the_reference_unit_for_unit(golden, case):
    similarity = correlation(golden[f"{case['key']}/covariance"])
    assignment = match_zip(
        similarity, case["num_models"], alpha=case["alpha"], beta=case["beta"]
    )
    assert assignment.max() + 1 == case["units"]
    check_same_partition(assignment, golden[f"{case['key']}/unmerge"])


@pytest.mark.parametrize("case", cases("permute"))
def test_align_is_the_reference_unit_for_unit(golden, case):
    similarity = correlation(golden[f"{case['key']}/covariance"])
    assignment = match_align(similarity, case["num_models"])
    check_same_partition(assignment, golden[f"{case['key']}/unmerge"])


@pytest.mark.parametrize("case", cases("group_permute"))
def test_grouped_align_is_the_reference_unit_for_unit(golden, case):
    assignment = match_grouped_align(
        golden[f"{case['key']}/similarity"],
        case["num_models"],
        num_groups=case["groups"],
    )
    check_same_partition(assignment, golden[f"{case['key']}/unmerge"])


@pytest.mark.parametrize("case", cases("group_zip"))
def test_grouped_zip_is_the_reference_unit_for_unit(golden, case):
    assignment = match_grouped_zip(
        golden[f"{case['key']}/similarity"],
        case["num_models"],
        num_groups=case["groups"],
        alpha=case["alpha"],
        beta=case["beta"],
    )
    assert assignment.max() + 1 == case["groups"] * case["units_per_group"]
    check_same_partition(assignment, golden[f"{case['key']}/unmerge"])
