from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig

from compat.errors import ArgumentError
from compat.trainer.components import distribution
from compat.trainer.components.distribution import (
    ATTENTION,
    Distribution,
    context_problems,
    sequence_problems,
)
from compat.upstream.environment import Facts


def mesh(attention: str | None = None, size: int = 2) -> Any:
    handler = DeepSpeedSequenceParallelConfig(sp_attn_implementation=attention)
    return SimpleNamespace(parallelism_config=ParallelismConfig(sp_size=size, sp_handler=handler))


def model(attention: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention))


LAUNCHED: Any = SimpleNamespace(parallelism_config={"sp_size": 2})
"""The sizes as a launcher sets them."""


@pytest.mark.parametrize(
    ("of", "args", "launched", "texts"),
    [
        (model("sdpa"), mesh("sdpa"), {}, []),
        (model("eager"), mesh(size=1), {}, []),
        (None, mesh(), {}, []),
        (
            model("sdpa"),
            mesh(),
            {},
            ["=None, and the model's is 'sdpa'. Give `sp_handler="],
        ),
        (model("eager"), mesh("sdpa"), {}, ["sp_attn_implementation='sdpa', and the model's is 'eager'"]),
        (model("sdpa"), LAUNCHED, {ATTENTION: "sdpa"}, []),
        (model("sdpa"), LAUNCHED, {ATTENTION: "None"}, [f"or {ATTENTION}=sdpa by the launcher"]),
        (
            pl.LightningModule(),
            mesh("sdpa"),
            {},
            ["`model=LightningModule`: a LightningModule would"],
        ),
    ],
)
def test_what_cannot_share_sequences(
    monkeypatch: pytest.MonkeyPatch, of: Any, args: Any, launched: dict[str, str], texts: list[str]
) -> None:
    monkeypatch.setattr(distribution, "SHARES_SEQUENCES", True)
    told = list(sequence_problems(of, args, Facts(launched=launched, world_size=2)))
    assert len(told) == len(texts)
    assert all(text in line for text, line in zip(texts, told, strict=True))
    assert all(line.startswith("`parallelism_config` with sp_size=2") for line in told)


def test_a_release_that_shares_no_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "SHARES_SEQUENCES", False)
    (told,) = sequence_problems(model("sdpa"), mesh("sdpa"), Facts())
    assert "Update to transformers 5.3 or later" in told


@pytest.mark.parametrize(
    ("device_type", "processes", "count"), [("cpu", 4, 1), ("cpu", 2, 0), ("cuda", 4, 0)]
)
def test_several_groups_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, device_type: str, processes: int, count: int
) -> None:
    monkeypatch.setattr(distribution, "SHARES_SEQUENCES", True)
    facts = Facts(device_type=device_type, world_size=processes)
    told = list(sequence_problems(model("sdpa"), mesh("sdpa"), facts))
    assert len(told) == count
    assert all("Give sp_size=4, or start 2." in line for line in told)


class Host:
    """What of a trainer decides on its loss."""

    def __init__(self, *, shares: bool) -> None:
        self.accelerator = SimpleNamespace(shares_sequences=shares)
        self.compute_loss_func: Any = print


def test_a_loss_that_hf_would_not_compute_is_refused() -> None:
    host: Any = Host(shares=True)
    with pytest.raises(ArgumentError, match="`compute_loss_func` with sequences that processes share"):
        Distribution(host).check_loss()
    host.compute_loss_func = None
    Distribution(host).check_loss()
    alone: Any = Host(shares=False)
    Distribution(alone).check_loss()


def test_what_cannot_share_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = SimpleNamespace(parallelism_config=ParallelismConfig(cp_size=2))
    monkeypatch.setattr(distribution, "SHARES_CONTEXTS", True)
    assert not list(context_problems(model("sdpa"), asked))
    (told,) = context_problems(pl.LightningModule(), asked)
    assert (
        "cp_size=2 and `model=LightningModule`: a LightningModule would compute its loss of a slice" in told
    )
    monkeypatch.setattr(distribution, "SHARES_CONTEXTS", False)
    (told,) = context_problems(None, asked)
    assert "has no context parallel. Update to transformers 5, or give cp_size=1." in told
    assert not list(context_problems(None, SimpleNamespace(parallelism_config=None)))  # type: ignore[arg-type]
