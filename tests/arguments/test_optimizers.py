"""What an optimizer needs, as a table."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.training_args import OptimizerNames

from compat.arguments.optimizers import OPTIMIZERS, optimizer_problems

CPU = torch.device("cpu")


def given(optim: str, **options: Any) -> Any:
    return SimpleNamespace(
        **{"optim": optim, "world_size": 1, "gradient_accumulation_steps": 1, "fp16": False, **options}
    )


def test_the_table_has_each_that_the_release_knows() -> None:
    generation = "5" if transformers.__version__.startswith("5") else "4.53"
    listed = {name for name, one in OPTIMIZERS.items() if one.releases in ("", generation)}
    assert listed == {one.value for one in OptimizerNames}


def test_what_stands_in_the_place_of_another_has_fewer_conditions() -> None:
    for one in OPTIMIZERS.values():
        assert not OPTIMIZERS[one.instead].steps_in_backward
        assert not OPTIMIZERS[one.instead].cannot


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (given("adamw_torch", world_size=4, fp16=True, gradient_accumulation_steps=2), []),
        (given("a name of tomorrow"), []),
        (given("lomo"), []),
        (
            given("galore_adafactor_layerwise"),
            ["`optim='galore_adafactor_layerwise'`: transformers gives it a learning rate and"],
        ),
        (
            given("adalomo", world_size=2),
            [
                "lomo-optim has it for cuda alone, and the model is on cpu. Give optim='adafactor'",
                "2 processes",
            ],
        ),
        (
            given("apollo_adamw_layerwise", gradient_accumulation_steps=2),
            ["`gradient_accumulation_steps=2` with `optim='apollo_adamw_layerwise'`: layers are stepped"],
        ),
        (given("lomo", fp16=True), ["`fp16=True` with `optim='lomo'`: .* Give bf16=True, or optim='sgd'"]),
    ],
)
def test_what_an_optimizer_lacks_is_told(
    args: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compat.arguments.optimizers._is_installed", lambda _: True)
    found = optimizer_problems(args, CPU)
    assert len(found) == len(texts)
    for problem, text in zip(found, texts, strict=True):
        assert re.search(text, problem)


def test_hfs_default_is_refused_on_xla() -> None:
    fused, device = given("adamw_torch_fused"), torch.device("xla")
    assert optimizer_problems(fused, CPU) == optimizer_problems(given("adamw_torch"), device) == []
    (problem,) = optimizer_problems(fused, device)
    assert problem == (
        "`optim='adamw_torch_fused'`: torch has no fused step for xla, where the model is. HF takes this "
        "optimizer where none is given. Give optim='adamw_torch'."
    )


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compat.arguments.optimizers.find_spec", lambda _: None)
    (problem,) = optimizer_problems(given("schedule_free_sgd"), CPU)
    assert problem == (
        "`optim='schedule_free_sgd'`: it comes with schedulefree, which is not installed. Install it, or "
        "give optim='adamw_torch'."
    )
