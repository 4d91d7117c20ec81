"""What TRL, Sentence Transformers and SetFit use of HF's Trainer and of accelerate is served here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate import utils as accelerate_utils
from torch import nn

from compat.upstream.accelerator import AS_IT_IS
from compat.upstream.third_parties import ACCELERATE, HELD, PROCESS, STATE, SUPPLIED, TRAINER
from tests.conformance.third_parties import found_in, installed, uses_of
from tests.parity.record import isolated
from tests.small import Regression, rows, trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = """
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

class OddTrainer(Trainer):
    _signature_columns = None

    def _prepare_inputs(self, inputs):
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        with self.accelerator.autocast(), torch.accelerator.device_index(0):
            return self.not_of_the_trainer(self.model_wrapped, accelerate.__version__)

def on_each(trainer, args):
    state = PartialState()
    with state.main_process_first():
        trainer.accelerator.gather(trainer.callback_handler)
    return args.distributed_state.distributed_type
"""

FOUND = [
    ("accelerate", "accelerate:Accelerator", 2),
    ("accelerate", "accelerate:PartialState", 2),
    ("accelerate", "accelerate.utils:gather_object", 3),
    ("trainer", "_signature_columns", 6),
    ("trainer", "_prepare_inputs", 8),
    ("accelerator", "state", 9),
    ("state", "deepspeed_plugin", 9),
    ("trainer", "accelerator", 9),
    ("accelerator", "autocast", 10),
    ("trainer", "accelerator", 10),
    ("accelerate", "accelerate:__version__", 11),
    ("trainer", "model_wrapped", 11),
    ("process", "main_process_first", 15),
    ("accelerator", "gather", 16),
    ("trainer", "accelerator", 16),
    ("trainer", "callback_handler", 16),
    ("process", "distributed_type", 17),
]


def test_uses_are_found() -> None:
    assert sorted(found_in(SOURCE)) == sorted(FOUND)


@pytest.mark.parametrize("library", installed() or [pytest.param("", marks=pytest.mark.skip("none of them"))])
def test_every_use_is_served(library: str) -> None:
    lacking = [str(use) for use in uses_of(library) if not use.is_served]
    shown = "\n".join(lacking[:20])
    assert not lacking, (
        f"{len(lacking)} uses of names that compat/upstream/third_parties.py does not have. Try each on a "
        f"compat trainer, mend what differs from HF's, and say there who serves it:\n{shown}"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A trainer of ours and one of HF's, after a step and an evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    ours = trainer(folder / "ours", max_steps=1)
    ours.train()
    with isolated():
        theirs = transformers.Trainer(
            model=Regression(),
            args=transformers.TrainingArguments(
                str(folder / "theirs"), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
            ),
            train_dataset=rows(),
            eval_dataset=rows(5),
        )
        theirs.train()
    return ours, theirs


def test_names_of_the_trainer_are_there(trained: tuple[Any, Any]) -> None:
    ours, theirs = trained
    absent = [name for name in TRAINER if hasattr(theirs, name) and not hasattr(ours, name)]
    assert not absent


def test_the_table_knows_which_are_ours(trained: tuple[Any, Any]) -> None:
    ours, theirs = trained
    methods = [
        name for name, by in TRAINER.items() if by != SUPPLIED and callable(getattr(type(theirs), name, None))
    ]
    replaced = {name for name in methods if getattr(type(ours), name).__module__.startswith("compat.")}
    said = {name for name in methods if TRAINER[name] != AS_IT_IS}
    assert replaced == said


def test_names_of_accelerate_are_there(trained: tuple[Any, Any]) -> None:
    ours, _ = trained
    for where in ACCELERATE:
        module, _, name = where.partition(":")
        assert hasattr(importlib.import_module(module), name), where
    assert [name for name in HELD if not hasattr(ours.accelerator, name)] == []
    assert [name for name in PROCESS if not hasattr(PartialState(), name)] == []
    assert [name for name in STATE if getattr(ours.accelerator.state, name, None) is not None] == []


def test_functions_of_accelerate_work_on_ours(trained: tuple[Any, Any]) -> None:
    ours, _ = trained
    face = ours.accelerator
    assert accelerate_utils.extract_model_from_parallel(ours.model_wrapped) is ours.model
    assert face.unwrap_model(ours.model_wrapped) is ours.model
    assert not accelerate_utils.is_peft_model(ours.model_wrapped)
    assert accelerate_utils.gather_object(["a"]) == ["a"]
    assert accelerate_utils.broadcast_object_list(["a"]) == ["a"]
    assert accelerate_utils.gather(torch.ones(2)).tolist() == [1.0, 1.0]
    assert face.pad_across_processes(torch.ones(1, 2), dim=1).shape == (1, 2)
    with face.split_between_processes([1, 2]) as mine:
        assert mine == [1, 2]
    reference = face.prepare_model(nn.Linear(2, 2), evaluation_mode=True)
    assert isinstance(reference, nn.Linear)
    assert isinstance(face, Accelerator)
