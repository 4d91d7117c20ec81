"""What else a script waits for: each case is one number of one contender, measured in a process of its own.

A contender is the package whose Trainer runs, or "bare": what must be done, without any Trainer. Times are
processor times, but for those of whole commands.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH_SIZE = 8
MICRO_STEPS = 1500
FEW, MANY = 20, 1500
CONSTRUCTIONS = 20
ROWS, BEHIND = 1_000_000, 100
LOGS = 50_000


@dataclass(frozen=True)
class Case:
    """A thing that takes time or memory.

    Attributes:
        about: what it is, in print.
        measure: package and folder → the number.
        has_bare: whether a bare loop's number is taken off both sides, so that what is compared is overhead.
        reference: the package that `compat` is compared with.
        alone: whether each contender needs a process of its own, because that process is what is measured.
    """

    about: str
    measure: Callable[[str, Path], float]
    has_bare: bool = False
    reference: str = "transformers"
    alone: bool = False


class Tiny(nn.Module):
    """So little work that the cost of everything around it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.second(self.first(inputs).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Numbers(torch.utils.data.Dataset):
    """Many rows that cost nothing to make."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": torch.full((16,), index / ROWS), "labels": torch.tensor(index % 2)}


def rows(batches: int) -> list[dict[str, torch.Tensor]]:
    """As many rows as fill so many batches."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"inputs": torch.randn(16, generator=generator), "labels": torch.tensor(i % 2)}
        for i in range(batches * BATCH_SIZE)
    ]


def loader(data: Any) -> Any:
    """What a bare loop reads; the first call imports the collator."""
    from transformers import default_data_collator

    return torch.utils.data.DataLoader(data, BATCH_SIZE, collate_fn=default_data_collator)


def trainer_of(package: str, folder: Path, data: Any, *, options: Any = None, **parts: Any) -> Any:
    """A Trainer that reports nothing and saves nothing."""
    module = importlib.import_module(package)
    arguments = {
        "output_dir": str(folder / package),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "optim": "adamw_torch",
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH_SIZE,
        "per_device_eval_batch_size": BATCH_SIZE,
        "dataloader_pin_memory": False,
        **(options or {}),
    }
    torch.manual_seed(0)
    return module.Trainer(Tiny(), module.TrainingArguments(**arguments), train_dataset=data, **parts)


def spent(action: Callable[[], object]) -> float:
    """Processor time of an action, in milliseconds."""
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def whole_training(accumulation: int) -> Callable[[str, Path], float]:
    """`train` from its call to its return."""

    def measure(package: str, folder: Path) -> float:
        data = rows(MICRO_STEPS)
        if package == "bare":
            # Its first steps load what a Trainer has loaded by then.
            train_bare(data[: 2 * BATCH_SIZE], 1)
            return spent(lambda: train_bare(data, accumulation))
        trainer = trainer_of(package, folder, data, options={"gradient_accumulation_steps": accumulation})
        return spent(trainer.train)

    return measure


def observed_training(package: str, folder: Path) -> float:
    """`train` with a callback and a logger of Lightning's, or plain Lightning's `fit` with the same."""
    import lightning.pytorch as pl

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.seen = getattr(self, "seen", 0) + 1

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tiny()

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 5e-5)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    data = rows(MICRO_STEPS)
    if package == "bare":
        return whole_training(1)(package, folder)
    watches = {"callbacks": [Watch()], "logger": pl.loggers.CSVLogger(folder)}
    if package == "compat":
        return spent(trainer_of(package, folder, data, options={"lightning": watches}).train)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **watches,
    )
    module, batches = Module(), loader(data)
    module.configure_optimizers()  # loads what a Trainer has loaded by then
    return spent(lambda: trainer.fit(module, batches))


def train_bare(data: Any, accumulation: int) -> None:
    """What must be done to train."""
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for number, batch in enumerate(loader(data), 1):
        (model(**batch)["loss"] / accumulation).backward()
        if number % accumulation == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def accuracy(prediction: Any) -> dict[str, float]:
    """A metric that costs little."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def passes(method: str, *, metric: bool) -> Callable[[str, Path], float]:
    """One batch of `evaluate` or `predict`, from passes of two lengths."""

    def measure(package: str, folder: Path) -> float:
        few, many = rows(FEW), rows(MANY)
        if package == "bare":
            run: Any = evaluate_bare
        else:
            trainer = trainer_of(package, folder, None, compute_metrics=accuracy if metric else None)
            run = getattr(trainer, method)
        run(few)
        short = spent(lambda: run(few))
        return (spent(lambda: run(many)) - short) / (MANY - FEW)

    return measure


def evaluate_bare(data: Any) -> None:
    """What must be done to evaluate."""
    model = Tiny().eval()
    with torch.no_grad():
        kept = [model(**batch) for batch in loader(data)]
    torch.stack([output["loss"] for output in kept]).mean()


def construction(package: str, folder: Path) -> float:
    """A Trainer's constructor, once all is imported."""
    data = rows(1)
    trainer_of(package, folder, data)
    return spent(lambda: [trainer_of(package, folder, data) for _ in range(CONSTRUCTIONS)]) / CONSTRUCTIONS


def resumption(package: str, folder: Path) -> float:
    """From `train` to the next step, where 100 of 1,000 batches of an epoch of a million rows lie behind."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= self.last

        def __init__(self, last: int) -> None:
            self.last = last

    options = {
        "save_strategy": "steps",
        "save_steps": BEHIND,
        "per_device_train_batch_size": ROWS // 1000,
    }
    if not (child := os.fork()):
        # As when a job was stopped: in a process of its own.
        trainer_of(package, folder, Numbers(), options=options, callbacks=[Stop(BEHIND)]).train()
        os._exit(0)
    os.waitpid(child, 0)
    again = trainer_of(package, folder, Numbers(), options=options, callbacks=[Stop(BEHIND + 1)])
    return spent(lambda: again.train(resume_from_checkpoint=True))


def memory(method: str) -> Callable[[str, Path], float]:
    """The most memory that a process has held, in MB."""

    def measure(package: str, folder: Path) -> float:
        trainer = trainer_of(package, folder, rows(FEW))
        trainer.train() if method == "train" else getattr(trainer, method)(rows(MANY))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    return measure


def saving_memory(package: str, folder: Path) -> float:
    """The most memory that a process has held that saves after each step, in MB."""
    trainer_of(package, folder, rows(FEW), options={"save_strategy": "steps", "save_steps": 1}).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def long_log(package: str, folder: Path) -> float:
    """Steps that log, and a save at the last, with many logs behind."""
    from transformers import TrainerCallback

    class Behind(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            entry = {"loss": 0.7, "grad_norm": 1.2345678, "learning_rate": 5e-5, "epoch": 0.1}
            state.log_history.extend({**entry, "step": step} for step in range(LOGS))

    options = {"logging_strategy": "steps", "logging_steps": 1, "save_strategy": "epoch"}
    trainer = trainer_of(package, folder, rows(MANY), options=options, callbacks=[Behind()])
    return spent(trainer.train)


SCRIPT = """
import os
from cases import rows, trainer_of
from transformers import TrainerCallback

class Stop(TrainerCallback):
    def on_step_end(self, *_, **__):
        os._exit(0)

from pathlib import Path
trainer_of("transformers", Path("."), rows(4), callbacks=[Stop()]).train()
"""


def start(package: str, folder: Path) -> float:
    """From the command to the end of the first step, in seconds of the clock."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    run = ["-m", "compat", "run"] if package == "compat" else []
    began = time.monotonic()
    subprocess.run(
        [sys.executable, *run, script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


CASES = {
    "train": Case("`train()` of 1,500 micro-steps, overhead", whole_training(1), has_bare=True),
    "train_8": Case("the same, accumulation 8", whole_training(8), has_bare=True),
    "observed": Case(
        "`train()` with a Lightning callback and logger, plain Lightning = 1",
        observed_training,
        has_bare=True,
        reference="lightning",
    ),
    "evaluate": Case("`evaluate()`, overhead of a batch", passes("evaluate", metric=False), has_bare=True),
    "metric": Case("the same with `compute_metrics`", passes("evaluate", metric=True), has_bare=True),
    "predict": Case("`predict()`, overhead of a batch", passes("predict", metric=True), has_bare=True),
    "construct": Case("building a Trainer", construction),
    "resume": Case("resuming in mid-epoch, a million rows", resumption, alone=True),
    "start": Case("from the command to the first step", start, alone=True),
    "train_memory": Case("peak memory of training", memory("train"), alone=True),
    "evaluate_memory": Case("peak memory of evaluation", memory("evaluate"), alone=True),
    "save_memory": Case("peak memory of saving", saving_memory, alone=True),
    "long_log": Case("1,500 steps that log, and a save, 50,000 logs behind", long_log, alone=True),
}
