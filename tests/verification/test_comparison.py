from __future__ import annotations

import math
from typing import Any

import pytest

from compat.verification.comparison import FACTOR, MISSING, compare, distance
from compat.verification.records import Key, Run, flatten
from compat.verification.report import sentence


def digest(*values: float, sha: str = "", dtype: str = "float32") -> dict[str, Any]:
    return {"sha256": sha or str(values), "dtype": dtype, "shape": [len(values)], "sample": list(values)}


@pytest.mark.parametrize(
    ("left", "right", "amount"),
    [
        (1.0, 1.0, 0.0),
        (1.0, 1.5, 0.5),
        (math.nan, math.nan, 0.0),
        (math.nan, 1.0, math.inf),
        (0.0, -0.0, math.ulp(0.0)),
        (1, 1.0, math.ulp(0.0)),
        ("a", "b", math.inf),
        (None, 1.0, math.inf),
        (True, 1, math.inf),
        (digest(1, 2), digest(1, 2), 0.0),
        (digest(1, 2), digest(1, 4), 2.0),
        (digest(1, 2), digest(1, 2, sha="other"), math.ulp(0.0)),
        (digest(1, 2), digest(1, 2, 3), math.inf),
        (digest(1, 2), digest(1, 2, dtype="bfloat16"), math.inf),
    ],
)
def test_distance(left: Any, right: Any, amount: float) -> None:
    assert distance(left, right) == amount
    assert distance(right, left) == amount


def run(*losses: Any, engine: str = "hf", **more: Any) -> Run:
    values = {Key(1, step, "loss", "micro-batch 1"): loss for step, loss in enumerate(losses, start=1)}
    return Run(engine, values=values | more.get("values", {}))


def verdicts(theirs: list[Run], ours: list[Run]) -> dict[str, str]:
    return {row.key: row.verdict for row in compare(theirs, ours).rows if row.compared}


def test_equal_runs() -> None:
    comparison = compare([run(1.0, 2.0)], [run(1.0, 2.0)])
    assert comparison.is_exact
    assert comparison.first is None
    (losses,) = [row for row in comparison.rows if row.compared]
    assert (losses.key, losses.compared, losses.spread, losses.amount) == ("loss", 2, None, 0.0)


def test_the_first_difference_is_that_of_the_earliest_step_and_cause() -> None:
    weights = {Key(1, None, "weights", "a"): 1.0, Key(1, 2, "weight_sum", ""): 1.0}
    others = dict.fromkeys(weights, 3.0)
    comparison = compare([run(1.0, 2.0, 3.0, values=weights)], [run(1.0, 2.5, 3.5, values=others)])
    assert [d.key.quantity for d in comparison.differences] == ["loss", "weight_sum", "loss", "weights"]
    assert comparison.first.key.step == 2
    assert sentence(comparison.first) == (
        "at step 2 of training 1, loss of micro-batch 1: 2.0 under HF's Trainer, 2.5 under compat's "
        "(difference 0.5)"
    )


def test_what_one_run_lacks_differs() -> None:
    for theirs, ours in ((run(1.0, 2.0), run(1.0)), (run(1.0), run(1.0, 2.0))):
        first = compare([theirs], [ours]).first
        assert first.key.step == 2
        assert MISSING in (first.theirs, first.ours)


def test_runs_of_hf_that_differ_set_a_band() -> None:
    theirs = [run(1.0, 2.0), run(1.0, 2.1)]
    assert verdicts(theirs, [run(1.0, 2.0)]) == {"loss": "equal"}
    assert verdicts(theirs, [run(1.0, 1.9)]) == {"loss": "within spread"}
    assert verdicts(theirs, [run(1.0, 2.1 + 0.11 * FACTOR)]) == {"loss": "differs"}


def test_every_run_of_compat_is_compared() -> None:
    assert verdicts([run(1.0), run(1.0)], [run(1.0), run(2.0)]) == {"loss": "differs"}


def test_what_hf_gives_in_no_two_runs_alike_is_not_comparable() -> None:
    theirs = [run("a"), run("b")]
    comparison = compare(theirs, [run("c")])
    assert verdicts(theirs, [run("c")]) == {"loss": "not comparable"}
    assert not comparison.is_exact
    assert comparison.first is None


def test_records_are_flattened_without_readings_of_clocks() -> None:
    end = {
        "kind": "end",
        "train": 1,
        "log_history": [
            {"loss": 1.0, "grad_norm": 2.0, "step": 1},
            {"eval_loss": 3.0, "eval_runtime": 9.0, "eval_samples_per_second": 8.0, "step": 1},
            {"eval_loss": 4.0, "step": 1},
        ],
        **{name: {} for name in ("state", "weights", "optimizer", "scheduler", "generators")},
    }
    files = {"kind": "files", "files": {"out/trainer_state.json: log_history[0].eval_runtime": 1, "out/a": 2}}
    values = flatten([end, files], " on rank 1")
    assert {(key.step, key.quantity, key.name): value for key, value in values.items()} == {
        (1, "loss", "the log on rank 1"): 1.0,
        (1, "grad_norm", " on rank 1"): 2.0,
        (1, "metrics", "eval_loss on rank 1"): 3.0,
        (1, "metrics", "eval_loss (2) on rank 1"): 4.0,
        (None, "files", "out/a on rank 1"): 2,
    }
