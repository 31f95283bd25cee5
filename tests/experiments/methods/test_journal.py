"""Journals of rows: what was told first is kept, and JSON keeps all of it."""

import json

import zipjax
from experiments.methods.journal import Journal


def journal(score):
    own = Journal()
    own.sweeps["MuDSC"] = [zipjax.Sweep(0, score, 0), zipjax.Sweep(1, 1 / 3, 2)]
    trials = [zipjax.Trial({"alpha": 1, "balance": k / 10}, score) for k in (1, 3)]
    own.searches["MuDSC", "alpha", "balance"] = {
        name: zipjax.Search(tuple(trials)) for name in ("seed0", f"seed{score}")
    }
    assert own.timed(("matching", "MuDSC"), lambda: 7) == 7
    return own


def test_json_keeps_journals():
    own = journal(0.1)
    assert own.seconds["matching", "MuDSC"] > 0
    assert Journal.of(json.loads(json.dumps(own.data()))) == own
    assert Journal.of(json.loads(json.dumps(Journal().data()))) == Journal()


def test_what_was_told_first_is_kept():
    first, second = journal(0.1), journal(0.2)
    every = Journal()
    for own in (first, second):
        every.add(own)
    assert every.sweeps == first.sweeps
    assert every.seconds == first.seconds
    (found,) = every.searches.values()
    assert set(found) == {"seed0", "seed0.1", "seed0.2"}
    assert {found[name].best.score for name in ("seed0", "seed0.1")} == {0.1}
    assert found["seed0.2"].best.score == 0.2
    # Both are as they were.
    assert first == Journal.of(first.data())
    assert list(first.searches["MuDSC", "alpha", "balance"]) == ["seed0", "seed0.1"]
