"""Predicted costs, by hand and against what XLA allots."""

import pytest

from benchmarks.parts import memory
from zipjax.similarity.costs import moments_cost, passes


def test_costs_by_hand():
    cost = moments_cost([10, 20], 100, hosts=4)
    assert cost.passes == 1
    assert cost.device_bytes == 4 * (100 + 400 + 400)
    assert cost.host_bytes == 4 * 500
    assert cost.flops == 2 * 100 * (10 * 10 + 20 * 20)
    assert cost.host_communication == 2 * 4 * 500 * 3 // 4
    assert moments_cost({"a": 10, "b": 20}, 100, hosts=4) == cost
    assert moments_cost([10], 100).host_communication == 0


def test_panels_cover_every_row_once_or_twice():
    plan = passes({"a": (1, 100), "b": (1, 10), "c": (3, 10)}, 4000)
    panels = [own for own in plan if own.perms == ("a",)]
    assert {own.height for own in panels} == {5}
    covered = sorted(row for own in panels for row in range(own.start, own.start + 5))
    assert covered == list(range(100))
    odd = passes({"a": (1, 101)}, 4000)
    assert odd[-1].start == 101 - odd[-1].height
    assert [own.perms for own in plan if own.perms != ("a",)] == [("b", "c")]


@pytest.mark.parametrize("units", [128, 1024, 2048])
def test_the_prediction_is_what_a_step_takes(units):
    predicted = moments_cost([units], 64).device_bytes / 1e6
    allotted = memory.allotted(units, None, samples=64)
    assert 0.97 * predicted < allotted < 1.03 * predicted


def test_wide_perms_need_little_more_than_half_of_their_products():
    # Of 4 parts, the products of 10 pairs.
    assert moments_cost([4096], 1).flops == 2 * 10 * 1024**2
