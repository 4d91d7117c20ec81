"""Four ways of training the same model, each with a note of what one update step took.

All do the same work: same weights, batches in the same order, AdamW with a linear schedule,
gradients clipped, nothing logged and nothing saved. The model itself notes when each forward pass
begins, so that imports, set-up and the first steps do not count. Time is processor time: what else
runs on the machine then matters little, and on one thread nobody waits for anything. Processes of a job wait
for one another, and are measured by the clock.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 3
CLOCK = time.perf_counter if "WORLD_SIZE" in os.environ else time.process_time
LEARNING_RATE = 1e-3
CLIP = 1.0


@dataclass(frozen=True)
class Case:
    """One model and how long it is trained: `steps` update steps at an accumulation of 1 and 8."""

    about: str
    batch_size: int
    steps: dict[int, int]


CASES = {
    "tiny": Case("two linear layers", 8, {1: 600, 8: 150}),
    "gpt2": Case("GPT-2, 20M parameters", 1, {1: 14, 8: 7}),
}


@dataclass(frozen=True)
class Job:
    """What one contender has to do, and where it may leave files."""

    model: str
    accumulation: int
    steps: int
    folder: str
    processes: int = 1

    @property
    def batch_size(self) -> int:
        """Samples in one batch."""
        return CASES[self.model].batch_size


class Timed(nn.Module):
    """A model that gives its loss the Hugging Face way, and notes the time of each forward pass.

    It takes no further arguments, so that every contender averages over batches, not over tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []
        self.losses: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.starts.append(CLOCK())
        loss = self.compute(inputs, labels)
        self.losses.append(loss.detach())
        return {"loss": loss}

    def compute(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Tiny(Timed):
    """So little work that the cost of everything around it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 2)

    def compute(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.second(self.first(inputs).relu()), labels)

    @staticmethod
    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        label = torch.randint(2, (), generator=generator)
        return {"inputs": torch.randn(16, generator=generator), "labels": label}


class Language(Timed):
    """Enough work that the cost of everything around it should vanish."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        config = GPT2Config(
            vocab_size=8192,
            n_positions=64,
            n_embd=384,
            n_layer=9,
            n_head=6,
            bos_token_id=0,
            eos_token_id=0,
            # Trainers seed themselves at different moments, and dropout would tell.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        self.model = GPT2LMHeadModel(config)

    def compute(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=inputs, labels=labels).loss

    @staticmethod
    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        tokens = torch.randint(8192, (32,), generator=generator)
        return {"inputs": tokens, "labels": tokens}


MODELS = {"tiny": Tiny, "gpt2": Language}


def build(job: Job) -> tuple[Timed, list[dict[str, torch.Tensor]]]:
    """Returns the untrained model and as many samples as its steps consume."""
    torch.manual_seed(0)
    model = MODELS[job.model]().train()
    generator = torch.Generator().manual_seed(0)
    count = job.batch_size * job.accumulation * job.steps * job.processes
    return model, [model.sample(generator) for _ in range(count)]


def linear(job: Job, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Returns the schedule that falls to zero over the steps of a job."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (job.steps - step) / job.steps))


def train_bare(job: Job) -> Timed:
    """Trains in a loop that does what must be done and no more."""
    model, samples = build(job)
    loader = torch.utils.data.DataLoader(samples, job.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    schedule = linear(job, optimizer)
    for number, batch in enumerate(loader, 1):
        (model(**batch)["loss"] / job.accumulation).backward()
        if number % job.accumulation == 0:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def train_hf(job: Job, package: str = "transformers") -> Timed:
    """Trains with the Trainer of `transformers`, or of another package with the same face."""
    module = __import__(package)

    class InOrder(module.Trainer):
        def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model, samples = build(job)
    arguments = module.TrainingArguments(
        output_dir=job.folder,
        per_device_train_batch_size=job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        max_grad_norm=CLIP,
        optim="adamw_torch",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    InOrder(model=model, args=arguments, train_dataset=samples).train()
    return model


def train_compat(job: Job) -> Timed:
    """Trains with our Trainer: the same code, another import."""
    return train_hf(job, "compat")


def train_lightning(job: Job) -> Timed:
    """Trains a LightningModule as its author would write it, with nothing around it."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, model: Timed) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=0.0)
            schedule = {"scheduler": linear(job, optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    model, samples = build(job)
    lightning.Trainer(
        default_root_dir=job.folder,
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=job.accumulation,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(model), torch.utils.data.DataLoader(samples, job.batch_size))
    return model


@dataclass(frozen=True)
class Contender:
    """A way of training, and what it is called in print."""

    name: str
    train: Callable[[Job], Timed]


CONTENDERS = {
    "bare": Contender("bare PyTorch loop", train_bare),
    "hf": Contender("transformers.Trainer", train_hf),
    "lightning": Contender("Lightning Trainer", train_lightning),
    "compat": Contender("compat.Trainer", train_compat),
}


def work(contender: str, job: Job) -> dict[str, object]:
    """Does one job and returns its result: milliseconds per update step, and proof of the work."""
    model = CONTENDERS[contender].train(job)
    step_starts = model.starts[WARM_UP * job.accumulation :: job.accumulation]
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return {
        "contender": contender,
        "model": job.model,
        "accumulation": job.accumulation,
        "steps": len(model.starts) / job.accumulation,
        "milliseconds": 1000 * (step_starts[-1] - step_starts[0]) / (len(step_starts) - 1),
        "loss": model.losses[-1].item(),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
