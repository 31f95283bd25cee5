"""Entries of single axes: sizes, atoms, JSON."""

import json

import pytest

from zipjax import Axis, Family, Fixed, Index, Product, Sum
from zipjax.spec.entries import (
    axes_of,
    entry_from_json,
    entry_size,
    entry_to_json,
    part_entries,
)

HEADS = Product((Axis("head", "out"), Axis("dim", "out")))
NESTED = Sum((HEADS, Fixed(3), Product((Fixed(4), Axis("dim", "in")))))
SIZES = {"head": 2, "dim": 5}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "make",
    [lambda: Axis("h", "both"), lambda: entry_from_json({"perm": "h", "role": "both"})],
)
def test_a_role_is_out_or_in(make):
    with pytest.raises(ValueError, match=r"'h' has role 'both'.*'out'.*'in'"):
        make()


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (None, None),
        (Axis("dim", "in"), 5),
        (Axis("other", "in"), None),
        (Fixed(7), 7),
        (HEADS, 2 * 5),
        (NESTED, 2 * 5 + 3 + 4 * 5),
        (Product((HEADS, None)), None),
        (Sum((HEADS, Axis("other", "in"))), None),
    ],
)
def test_sizes(entry, size):
    assert entry_size(entry, SIZES) == size


def test_atoms_come_from_left_to_right():
    head, dim = Axis("head", "out"), Axis("dim", "out")
    assert list(axes_of(NESTED)) == [head, dim, Axis("dim", "in")]
    assert list(axes_of(None)) == list(axes_of(Fixed(2))) == []


@pytest.mark.parametrize("entry", [None, Axis("a", "in"), Fixed(2), HEADS, NESTED])
def test_json_round_trip(entry):
    assert entry_from_json(json.loads(json.dumps(entry_to_json(entry)))) == entry


@pytest.mark.parametrize(
    "data",
    [3, "dim", {}, {"perm": "a"}, {"perm": 1, "role": "in"}, {"sum": 2}, [None]],
)
def test_what_is_no_entry_is_refused(data):
    with pytest.raises(ValueError, match="not an entry"):
        entry_from_json(data)


def test_entries_of_a_part_of_a_stack():
    first, second = Axis("a", "out"), Axis("b", "out")
    # Two layers with one perm, one layer with another.
    stack = Sum((Fixed(2), Fixed(1)))
    entries = (None, stack, Axis("dim", "in"), Family(1, (first, second)))
    found = [part_entries(entries, {1: position})[-1] for position in range(3)]
    assert found == [first, first, second]
    assert part_entries(entries, {1: 0}) == (None, Axis("dim", "in"), first)
    assert part_entries(entries, {0: 3}) == (*entries[1:3], Family(0, (first, second)))
    assert part_entries(entries, {}) == entries


@pytest.mark.parametrize("size", [-1, 2.5, True, "3"], ids=str)
def test_sizes_are_whole_numbers(size):
    for entry in (Fixed, lambda n: Index("layer", n)):
        with pytest.raises(ValueError, match="whole numbers from 0 on"):
            entry(size)
