"""Plain Lightning checkpoints: written in the middle of a run, and resumed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from lightning.pytorch.plugins.io import TorchCheckpointIO

import compat
from compat.errors import CheckpointError
from tests.small import Regression, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*not resumable",
    "ignore:.*no `val_dataloader`",
)


class Writing(transformers.TrainerCallback):
    """Has Lightning write a file at the end of an update step."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.trainer.lightning.save_checkpoint(self.file)


def written(folder: Path, step: int, **options: Any) -> tuple[Path, Any]:
    """A file of some step, and the run that has written it and gone on to its end."""
    callback = Writing(step, folder / "x.ckpt")
    run = trainer(folder / "whole", callbacks=[callback], train_dataset=rows(14), max_steps=10, **options)
    callback.trainer = run
    run.train()
    return folder / "x.ckpt", run


@pytest.mark.parametrize("step", [1, 5, 7, 9])
def test_a_run_resumes_from_a_lightning_file(tmp_path: Path, step: int) -> None:
    file, whole = written(tmp_path, step)
    resumed = trainer(tmp_path / "resumed", train_dataset=rows(14), max_steps=10)
    resumed.train(resume_from_checkpoint=str(file))
    assert resumed.state.global_step == 10
    assert weights(resumed) == weights(whole)
    # It was written ahead of the log of its step.
    assert losses(resumed) == losses(whole)[: step - 1] + losses(whole)[step:]
    assert list((tmp_path / "resumed").iterdir()) == []


def test_it_is_a_plain_file(tmp_path: Path) -> None:
    file, whole = written(tmp_path, 10)
    content = torch.load(file, weights_only=True)
    assert content["global_step"] == 10
    assert set(content["hf_files"]) >= {
        "trainer_state.json",
        "rng_state.pth",
        "data_state.pth",
        "training_args.bin",
    }
    for name, value in whole.model.state_dict().items():
        assert torch.equal(content["state_dict"][f"model.{name}"], value)

    module = compat.HFModule(Regression(), whole.args)
    lightning = alone(max_steps=12)
    before: dict[str, Any] = {}

    class Noting(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            before.update({name: value.clone() for name, value in module.state_dict().items()})
            before["moments"] = [s["exp_avg"].clone() for s in trainer.optimizers[0].state.values()]

    lightning.callbacks.append(Noting())  # type: ignore[attr-defined]
    loader = torch.utils.data.DataLoader(rows(14), batch_size=2)
    lightning.fit(module, loader, ckpt_path=file, weights_only=True)
    assert lightning.global_step == 12
    moments = [state["exp_avg"] for state in content["optimizer_states"][0]["state"].values()]
    assert all(map(torch.equal, before.pop("moments"), moments))
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in before.items())
    lightning.validate(module, loader, ckpt_path=file, weights_only=True, verbose=False)
    with torch.no_grad():
        whole.model.eval()
        expected = [float(whole.model(**batch)["loss"]) for batch in loader]
    assert float(lightning.callback_metrics["eval_loss"]) == pytest.approx(sum(expected) / 7)


def test_one_of_another_module_is_no_run_of_hfs(tmp_path: Path) -> None:
    file, _ = written(tmp_path, 2)
    content = torch.load(file, weights_only=True)
    del content["hf_files"]
    torch.save(content, file)
    run = trainer(tmp_path / "resumed")
    with pytest.raises(CheckpointError, match=r"x.ckpt`: no HF Trainer has written it.*--to pretrained"):
        run.train(resume_from_checkpoint=str(file))
    assert list((tmp_path / "resumed").iterdir()) == []


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file, whole = written(tmp_path, 2)
    content = bytearray(file.read_bytes())
    # In the middle of some tensor's data, which no reader of torch's looks at twice.
    place = content.index(
        torch.load(file, weights_only=True)["state_dict"]["model.out.bias"].numpy().tobytes()
    )
    content[place] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)
    with pytest.raises(CheckpointError, match=r"x.ckpt`: cut short or damaged \(Bad CRC-32"):
        trainer(tmp_path / "resumed").train(resume_from_checkpoint=str(file))
    assert list((tmp_path / "resumed").iterdir()) == []
    loader = torch.utils.data.DataLoader(rows(14), batch_size=2)
    with pytest.raises(CheckpointError, match=r"x.ckpt`: cut short or damaged .* Give an earlier checkpoint"):
        alone(max_steps=12).fit(compat.HFModule(Regression(), whole.args), loader, ckpt_path=file)


def test_a_way_of_their_own_to_load_stays(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        """Somebody's."""

    own = Own()
    loader = torch.utils.data.DataLoader(rows(4), batch_size=2)
    args = compat.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    runs = alone(max_steps=1, plugins=[own])
    runs.fit(compat.HFModule(Regression(), args), loader)
    assert runs.strategy.checkpoint_io is own


def alone(**flags: Any) -> pl.Trainer:
    """A Trainer of Lightning's."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )
