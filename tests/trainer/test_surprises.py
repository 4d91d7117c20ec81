"""What HF's Trainer computes and nobody would expect is said once, and computed all the same."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn

import compat
from compat.trainer.surprises import Watched
from tests.parity.parts import data, models
from tests.parity.parts.optimizers import InGroups, Layerwise
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

TOO_LARGE = "losses and gradients are {} times too large"
COUNTED = "it predicts no first label of a row"


@pytest.fixture
def said() -> Iterator[list[str]]:
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: texts.append(entry.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("transformers.trainer")
    log.addHandler(handler)
    yield texts
    log.removeHandler(handler)


class Mean(Regression):
    """Takes what HF has for it, and makes nothing of it."""

    def forward(self, x: Any, labels: Any = None, **kwargs: Any) -> Any:
        return super().forward(x, labels)


class Share(Regression):
    """Divides by what HF has counted."""

    def forward(self, x: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        output = super().forward(x, labels)
        if num_items_in_batch is not None:
            output["loss"] = ((output["logits"] - labels) ** 2).sum() / num_items_in_batch
        return output


class OfItsOwn(compat.Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class Divides(OfItsOwn):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss / self.args.gradient_accumulation_steps


class PassesOn(compat.Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)


def mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return ((outputs["logits"] - labels) ** 2).mean()


def share(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return ((outputs["logits"] - labels) ** 2).sum() / num_items_in_batch


def train(folder: Path, model: nn.Module, kind: Any = compat.Trainer, size: int = 4, **parts: Any) -> Any:
    options = arguments(folder, gradient_accumulation_steps=size, max_steps=2)
    ours = kind(model, options, train_dataset=rows(16), **parts)
    ours.train()
    return ours


@pytest.mark.parametrize(
    ("model", "parts", "whose"),
    [
        (Mean, {}, "`Mean`"),
        (Mean, {"kind": OfItsOwn}, "`OfItsOwn.compute_loss`"),
        (Share, {"kind": OfItsOwn}, "`OfItsOwn.compute_loss`"),
        (Mean, {"kind": PassesOn}, "`Mean`"),
        (Regression, {"compute_loss_func": mean}, "`compute_loss_func`"),
    ],
)
def test_a_mean_that_nobody_divides(
    tmp_path: Path, said: list[str], model: Any, parts: Any, whose: str
) -> None:
    train(tmp_path, model(), **parts)
    (sentence,) = said
    assert sentence.startswith(f"`gradient_accumulation_steps=4`: {whose} returns the mean of its batch")
    assert TOO_LARGE.format(4) in sentence


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (Share, {}),
        (Share, {"kind": PassesOn}),
        (Regression, {}),
        (Regression, {"kind": OfItsOwn}),
        (Mean, {"kind": Divides}),
        (Regression, {"compute_loss_func": share}),
        (Mean, {"size": 1}),
    ],
)
def test_a_loss_that_is_divided_is_not_spoken_of(
    tmp_path: Path, said: list[str], model: Any, parts: Any
) -> None:
    train(tmp_path, model(), **parts)
    assert said == []


def test_the_way_out_is_one(tmp_path: Path, said: list[str]) -> None:
    def first(size: int, *, divides: bool) -> float:
        torch.manual_seed(0)
        model = Mean()
        model.dropout = nn.Dropout(0.0)
        options = arguments(
            tmp_path, per_device_train_batch_size=8 // size, gradient_accumulation_steps=size, max_steps=1
        )
        ours = compat.Trainer(model, options, train_dataset=rows(8))
        if divides:
            ours.model_accepts_loss_kwargs = False
        ours.train()
        return ours.state.log_history[0]["loss"]

    whole = first(1, divides=False)
    assert first(4, divides=False) == pytest.approx(4 * whole, rel=1e-5)
    assert len(said) == 1
    assert first(4, divides=True) == pytest.approx(whole, rel=1e-5)
    assert len(said) == 1


def test_watching_changes_no_number() -> None:
    number = torch.tensor(7)
    watched = Watched.of(number)
    moved = watched.to("cpu").detach()
    assert watched.used == []
    assert type(torch.tensor(3.0) / moved) is torch.Tensor
    assert torch.equal(torch.tensor(3.0) / moved, torch.tensor(3.0) / number)
    assert watched.used
    assert watched.item() == 7
    assert isinstance(watched, torch.Tensor)


needs_counting = pytest.mark.skipif(
    not hasattr(transformers.trainer, "LOSS_MAPPING"), reason="counts the first labels of all models"
)


def language_model(folder: Path, model: nn.Module, collator: Any = data.pad) -> compat.Trainer:
    options = arguments(folder, label_names=["labels"])
    text = data.text(6, 1)
    return compat.Trainer(model, options, train_dataset=text, eval_dataset=text, data_collator=collator)


@needs_counting
def test_a_first_label_that_is_counted(tmp_path: Path, said: list[str]) -> None:
    ours = language_model(tmp_path, models.gpt2())
    ours.evaluate()
    ours.evaluate()
    assert [COUNTED in sentence for sentence in said] == [True]
    language_model(tmp_path, models.gpt2()).train()
    assert [COUNTED in sentence for sentence in said] == [True, True]

    def without_first(samples: Any) -> Any:
        batch = data.pad(samples)
        batch["labels"][:, 0] = -100
        return batch

    language_model(tmp_path, models.gpt2(), without_first).train()
    assert len(said) == 2


def layerwise(folder: Path, **options: Any) -> compat.Trainer:
    torch.manual_seed(0)
    model = Regression()
    given = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.1, **options}
    args = arguments(folder, max_grad_norm=0.0, **given)
    return compat.Trainer(model, args, train_dataset=rows(), optimizers=(Layerwise(model), None))


def test_a_schedule_that_acts_on_a_stand_in(tmp_path: Path, said: list[str]) -> None:
    layerwise(tmp_path).train()
    (sentence,) = said
    assert "the schedule 'linear' acts on a stand-in" in sentence
    assert "the layers are stepped with `learning_rate=0.1` all along" in sentence
    layerwise(tmp_path, lr_scheduler_type="constant").train()
    assert len(said) == 1


@pytest.mark.parametrize("save_async", [False, True])
def test_layerwise_optimizers_go_on_where_they_were(tmp_path: Path, save_async: bool) -> None:
    options = {"lightning": {"save_async": save_async}}
    whole = layerwise(tmp_path / "whole", **options)
    whole.train()
    again = layerwise(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))


def test_states_that_lie_in_groups_come_back(tmp_path: Path) -> None:
    def made(folder: Path) -> compat.Trainer:
        torch.manual_seed(0)
        model = Regression()
        args = arguments(folder, max_steps=6, save_strategy="steps", save_steps=3)
        return compat.Trainer(
            model, args, train_dataset=rows(), optimizers=(InGroups(model.parameters(), lr=0.1), None)
        )

    whole, again = made(tmp_path / "whole"), made(tmp_path / "again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))
