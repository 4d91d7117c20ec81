"""What happens to the model, and to a batch inside of a training step."""

from __future__ import annotations

import sys
from math import isnan, log
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import compat
from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect


class Settled(nn.Module):
    """Always three to one for the second class; to be smoothed, a model needs a config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(to_dict=dict)
        self.scores = nn.Parameter(torch.tensor([0.0, log(3)]))

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        logits = self.scores.expand(len(input_ids), 2)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def first_loss(bench: Bench) -> Any:
    """The loss of a first batch of second classes, as logged."""
    rows = [{"input_ids": torch.zeros(1).long(), "labels": torch.tensor(1)}] * 2
    return pytest.approx(small.losses(bench.trained(model=Settled(), train_dataset=rows))[0], abs=1e-4)


def embeddings_are_exact(bench: Bench) -> tuple[bool, bool]:
    """Whether the embeddings are what the table says, in training and in evaluation."""
    trainer = bench.trained(model=parts.Words(), train_dataset=parts.words(), eval_dataset=parts.words(2))
    trained = all(trainer.model.exact)
    trainer.model.exact.clear()
    trainer.evaluate()
    return trained, all(trainer.model.exact)


def caches_emptied(bench: Bench) -> list[int]:
    """How often the device's cache has been emptied since the start, seen at each step's end."""
    bench.patch.setattr("accelerate.utils.memory.is_cuda_available", lambda: True)
    emptied = bench.spy(torch.cuda, "empty_cache", then=lambda: None)
    seen: list[int] = []
    start = parts.At("on_train_begin", lambda *_: emptied.clear())
    note = parts.At("on_step_end", lambda *_: seen.append(len(emptied)))
    bench.trained(callbacks=[start, note])
    return seen


class Remembering(small.Regression):
    """Gives out what it wants back with its next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[bool] = []

    def forward(self, x: torch.Tensor, labels: Any = None, mems: Any = None) -> tuple[torch.Tensor, ...]:
        self.got.append(mems is not None)
        out = super().forward(x, labels)
        return (*([] if labels is None else [out["loss"]]), out["logits"], x.mean(dim=0).detach())


def remembers(bench: Bench) -> list[bool]:
    """Which batches come with what the one before has left."""
    model = Remembering()
    bench.trained(model=model)
    return model.got


class Targets(nn.Module):
    """Calls its labels by a name that tells nobody so."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, wanted: Any = None) -> dict[str, torch.Tensor]:
        logits = self.out(x)
        return {"loss": ((logits - wanted) ** 2).mean(), "logits": logits}


def labels_found(bench: Bench) -> bool:
    """Whether a prediction finds labels to give back."""
    rows = [{"x": row["x"], "wanted": row["labels"]} for row in small.rows(4)]
    return bench.trainer(model=Targets()).predict(rows).label_ids is not None


def kernels(bench: Bench) -> list[dict[str, Any]]:
    """What Liger's patches are called with."""
    calls: list[dict[str, Any]] = []
    library = ModuleType("liger_kernel.transformers")
    library._apply_liger_kernel_to_instance = lambda model, **options: calls.append(options)
    bench.patch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    bench.patch.setitem(sys.modules, "liger_kernel.transformers", library)
    for module in ("transformers.trainer", "transformers.integrations.liger"):
        if hasattr(sys.modules.get(module), "is_liger_kernel_available"):
            bench.patch.setattr(f"{module}.is_liger_kernel_available", lambda: True)
    bench.trained(model=parts.bert(), train_dataset=parts.words(), **NO_EVALUATION)
    return calls


def used_cache(bench: Bench) -> set[bool]:
    """Whether the model is told to use its cache while it trains."""
    model = parts.causal(use_cache=False)
    bench.trained(model=model, train_dataset=parts.text(), **NO_EVALUATION)
    return set(model.caches)


def layer_runs(bench: Bench) -> list[bool]:
    """Each run of a layer in one step, and whether with gradients: recomputed layers run twice."""
    model = parts.bert()
    bench.trained(model=model, train_dataset=parts.words(), **NO_EVALUATION)
    return model.runs


def times_run(bench: Bench) -> int:
    """How often a layer runs in one step."""
    return len(layer_runs(bench))


def compiled(bench: Bench) -> Any:
    """What the model is compiled with: backend and mode."""
    calls = bench.spy(torch, "compile", then=lambda model, **options: model)
    bench.trained()
    return {(call.backend, getattr(call, "mode", None)) for call in calls}


def runs_compiled(bench: Bench) -> bool:
    """Whether it is a compiled model that trains."""
    wrapped = bench.trained().model_wrapped
    torch._dynamo.reset()
    return isinstance(wrapped, torch._dynamo.OptimizedModule)


class Failing(small.Regression):
    """Gives no number for its second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        self.batches += 1
        out = super().forward(x, labels)
        return {**out, "loss": out["loss"] * float("nan")} if self.batches == 2 else out


def logs_nan(bench: Bench) -> list[bool]:
    """Which logged losses are no numbers."""
    return [isnan(loss) for loss in small.losses(bench.trained(model=Failing()))]


def overflow(bench: Bench) -> str | None:
    """What the run dies of, where a product overflows."""

    class Overflowing(small.Regression):
        def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
            return super().forward(x * float("inf"), labels)

    try:
        bench.trained(model=Overflowing())
    except ValueError as error:
        return str(error).split(" ")[0]
    return None


class Several(compat.TrainingArguments):
    """Arguments of a job whose number of processes a test may choose."""

    processes = 1

    @property
    def world_size(self) -> int:
        return self.processes


def tokens_averaged(bench: Bench) -> int:
    """How often two processes add up the tokens of a step."""
    bench.patch.setattr(Several, "processes", 2)
    args = bench.arguments(Several)
    bench.patch.setattr(Several, "processes", 1)
    trainer = bench.trainer(args=args, model=parts.causal(), train_dataset=parts.text(), **NO_EVALUATION)
    batches = iter(trainer.get_train_dataloader())
    bench.patch.setattr(Several, "processes", 2)
    gathered = bench.spy(trainer.accelerator, "gather", then=lambda tensor: tensor.repeat(2))
    trainer.get_batch_samples(batches, 1, args.device)
    return len(gathered)


NO_EVALUATION = {"eval_dataset": None}
NOT_AVERAGED = {"average_tokens_across_devices": False}
ONE_STEP = {"max_steps": 1}
SMOOTHED = 0.9 * log(4 / 3) + 0.1 * (log(4) + log(4 / 3)) / 2
COMPILES = {"torch_compile": True, "torch_compile_backend": "eager"}
LAYERS = {**ONE_STEP, "activation_checkpointing": True}
REENTRANT = {"use_reentrant": True}
NOT_REENTRANT = {"use_reentrant": False}
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(transformers.TrainingArguments, "activation_checkpointing") else ""
)
"""The name that transformers 5 has for it, with a warning of the older one."""

STEP = (
    Effect("label_smoothing_factor", 0.1, first_loss, (log(4 / 3), SMOOTHED), base=ONE_STEP),
    Effect("average_tokens_across_devices", True, tokens_averaged, (0, 1), base=NOT_AVERAGED),
    Effect("neftune_noise_alpha", 5.0, embeddings_are_exact, ((True, True), (False, True))),
    Effect("torch_empty_cache_steps", 2, caches_emptied, ([0] * 4, [1, 1, 2, 2]), base={"max_steps": 4}),
    Effect("past_index", 2, remembers, ([False, False], [False, True]), warns=True),
    Effect("label_names", ["wanted"], labels_found, (False, True)),
    Effect("use_liger_kernel", True, kernels, ([], [{}])),
    Effect(
        "liger_kernel_config",
        {"rope": False},
        kernels,
        ([{}], [{"rope": False}]),
        base={"use_liger_kernel": True},
    ),
    Effect("use_cache", True, used_cache, ({False}, {True})),
    Effect("activation_checkpointing", True, times_run, (1, 2), base=ONE_STEP),
    Effect(
        "activation_checkpointing_kwargs",
        REENTRANT,
        layer_runs,
        ([True, True], [False, True]),
        base={**LAYERS, "activation_checkpointing_kwargs": NOT_REENTRANT},
    ),
    Effect(
        "gradient_checkpointing",
        True,
        times_run,
        (1, 2),
        base=ONE_STEP,
        replaced_by=CHECKPOINTING,
        warns=bool(CHECKPOINTING),
    ),
    Effect(
        "gradient_checkpointing_kwargs",
        NOT_REENTRANT,
        layer_runs,
        ([False, True], [True, True]),
        base={**LAYERS, "gradient_checkpointing_kwargs": REENTRANT},
        replaced_by=CHECKPOINTING and f"{CHECKPOINTING}_kwargs",
        warns=bool(CHECKPOINTING),
    ),
    Effect("torch_compile", True, compiled, (set(), {("inductor", None)})),
    Effect("torch_compile_backend", "eager", runs_compiled, (False, True)),
    Effect(
        "torch_compile_mode",
        "reduce-overhead",
        compiled,
        ({("eager", None)}, {("eager", "reduce-overhead")}),
        base=COMPILES,
    ),
    Effect(
        "torchdynamo",
        "eager",
        compiled,
        (set(), {("eager", None)}),
        replaced_by="torch_compile_backend",
        warns=True,
    ),
    Effect("logging_nan_inf_filter", False, logs_nan, ([False, False], [False, True])),
    Effect("debug", "underflow_overflow", overflow, (None, "DebugUnderflowOverflow:")),
)
