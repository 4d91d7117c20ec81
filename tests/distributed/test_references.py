"""The reference of TRL 0.7's DPOTrainer, spread over two processes as the model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import jobs
from tests.distributed.sharded import FSDP, zero

SCRIPT = str(Path(__file__).parent / "scripts" / "references.py")


def check(file: Path, kinds: dict[str, str], settings: dict[str, Any], **variables: str) -> None:
    jobs.finished(jobs.run(jobs.torchrun(SCRIPT, str(file), json.dumps(settings)), **variables))
    found = json.loads(file.read_text())
    plain = found.pop("plain")
    assert plain.pop("reference") == "GPT2LMHeadModel"
    assert {name: outcome.pop("reference") for name, outcome in found.items()} == kinds
    for outcome in found.values():
        # Sums are taken in another order.
        assert outcome == pytest.approx(plain, rel=1e-5, abs=1e-5)


def test_sharded(tmp_path: Path) -> None:
    check(tmp_path / "found.json", {"fsdp": "FSDPGPT2LMHeadModel"}, {"fsdp": FSDP})


def test_references_under_zero(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed; `make test-deepspeed` has it")
    settings = {"two": zero(2), "three": zero(3)}
    kinds = dict.fromkeys(settings, "DeepSpeedEngine")
    check(tmp_path / "found.json", kinds, settings, DS_ACCELERATOR="cpu")
