"""What came of the set-ups of `sharded.py`, and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed import jobs
from tests.distributed.sharded import SETUPS, STEPS, Setup, adapters, make
from tests.warm import PYTHON

WORKER = str(Path(__file__).with_name("sharded.py"))

# Sums over processes are taken in another order than sums over a batch.
CLOSE = 1e-5
# transformers 4 logs losses with four digits.
LOGGED = CLOSE if HAS_TRAINING_SEAMS else 1e-4


def run(library: str, folder: Path, names: list[str], processes: int = 2, **more: str) -> None:
    command = jobs.torchrun(WORKER, library, str(folder), *names, processes=processes)
    jobs.finished(jobs.run(command, **more))


def run_unlaunched(library: str, folder: Path, names: list[str], **more: str) -> None:
    """The same in a process that nobody has launched."""
    command = [PYTHON, "-W", "ignore", "-m", "tests.distributed.sharded", library, str(folder), *names]
    jobs.finished(jobs.run(command, **more))


def assert_same(ours: Path, theirs: Path, name: str) -> None:
    """Hold every number and every weight of a job of one process against another's, to the bit."""
    assert read(ours, name) == read(theirs, name)
    found, expected = weights(ours, name), weights(theirs, name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def read(runs: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((runs / f"{name}-{rank}.json").read_text())


def weights(runs: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights at the end, without the names of what recomputes activations."""
    live = torch.load(runs / name / "weights.pt")
    return {key.replace("_checkpoint_wrapped_module.", ""): value for key, value in live.items()}


def assert_trains_alike(runs: Path, name: str, like: str) -> None:
    """Hold a run against another: losses, norms, evaluations, the best checkpoint and the weights left."""
    found, expected = read(runs, name), read(runs, like)
    assert len(found["losses"]) == len(expected["losses"]) == STEPS
    assert found["losses"] == pytest.approx(expected["losses"], rel=LOGGED)
    assert found["norms"] == pytest.approx(expected["norms"], rel=CLOSE)
    assert found["rates"] == expected["rates"]
    assert found["generated"] == expected["generated"]
    setup, keeps = SETUPS[name], "load_best_model_at_end"
    ends_alike = (keeps in setup.args) == (keeps in SETUPS[like].args)
    # One goes back to its best model, the other does not.
    end = expected["evaluation"] if ends_alike else expected["evaluations"][-1]
    assert found["evaluation"] == pytest.approx(end, rel=CLOSE)
    if setup.evaluates_first:
        assert found["first"] == pytest.approx(expected["first"], rel=CLOSE)
    if keeps in setup.args:
        steps = -len(expected["evaluations"]) + (expected["first"] is not None)
        assert found["evaluations"][steps:] == pytest.approx(expected["evaluations"][steps:], rel=CLOSE)
        assert found["best"] == expected["best"] == "checkpoint-5"
        assert found["evaluation"] != pytest.approx(found["evaluations"][-1], rel=0.01)


def assert_saved_is_live(runs: Path, name: str) -> None:
    """`from_pretrained` makes of a saved model what was trained."""
    setup: Setup = SETUPS[name]
    live, saved = weights(runs, name), runs / name / "saved"
    model = make(setup.model)
    if setup.model is adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model.unload(), saved)
    else:
        model, told = type(model).from_pretrained(saved, output_loading_info=True)
        assert not any(told.values())
    loaded = dict(model.named_parameters())
    assert loaded.keys() == live.keys()
    for key, value in loaded.items():
        torch.testing.assert_close(value.detach(), live[key], rtol=0, atol=0, check_dtype=False)


def saved_names(runs: Path, name: str) -> set[str]:
    return set(load_file(runs / name / "saved" / "model.safetensors"))
