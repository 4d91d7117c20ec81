"""Verifies built-in set-ups on all devices of this machine."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from compat.arguments.machine import XLA
from compat.errors import ArgumentError
from compat.upstream.children import visible_gpus
from compat.upstream.devices import ask
from compat.upstream.environment import Facts
from compat.verification import builtin
from compat.verification.report import DIFFERS, EQUAL, NOTHING, Report
from compat.verification.runs import Script
from compat.verification.verifying import verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STEPS: Final = 6

ARGUMENTS: Final = (
    *("--output_dir", "out", "--max_steps", str(STEPS), "--logging_steps", "1", "--save_steps", "3"),
    *("--eval_strategy", "steps", "--eval_steps", "3", "--per_device_train_batch_size", "4"),
    *("--gradient_accumulation_steps", "2", "--disable_tqdm", "True", "--learning_rate", "1e-3"),
)
"""Arguments of every set-up."""

LAYER: Final = '"transformer_layer_cls_to_wrap": ["GPT2Block"]'
FSDP_1: Final = ("--fsdp", "full_shard auto_wrap", "--fsdp_config", f'{{"fsdp_version": 1, {LAYER}}}')
FSDP_2: Final = ("--fsdp", "full_shard auto_wrap", "--fsdp_config", f'{{"fsdp_version": 2, {LAYER}}}')
ZERO: Final = (
    "--deepspeed",
    '{"zero_optimization": {"stage": 2}, "train_batch_size": "auto", '
    '"gradient_accumulation_steps": "auto", "gradient_clipping": "auto", '
    '"train_micro_batch_size_per_gpu": "auto", "zero_allow_untested_optimizer": true}',
)


UNFUSED: Final = ("--optim", "adamw_torch")
"""XLA devices have no fused step, which HF takes by default."""


@dataclass(frozen=True)
class Setup:
    """One set-up.

    Attributes:
        name: as `--only` takes it.
        kind: the devices that it is for: "cpu", "xla", or "cuda" for GPUs and other devices.
        processes: of a run, each on a device of its own where they are GPUs.
        arguments: of HF's Trainer.
        package: an optional package that it needs.
        variables: of the environment.
        obstacle: why it cannot be compared anywhere.
    """

    name: str
    kind: str
    processes: int = 1
    arguments: tuple[str, ...] = ()
    package: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    obstacle: str = ""


SETUPS: Final = (
    Setup("fp32", "cpu"),
    Setup("bf16", "cpu", 1, ("--bf16", "True")),
    Setup("ddp", "cpu", 2),
    Setup("fsdp2", "cpu", 2, FSDP_2, obstacle="HF's Trainer does not shard models on a CPU"),
    Setup("zero2", "cpu", 2, ZERO, "deepspeed", {"DS_ACCELERATOR": "cpu"}),
    Setup("fp32", "cuda", 1, ("--tf32", "False")),
    Setup("tf32", "cuda", 1, ("--tf32", "True")),
    Setup("bf16", "cuda", 1, ("--bf16", "True")),
    Setup("fp16", "cuda", 1, ("--fp16", "True")),
    Setup("ddp", "cuda", 2),
    Setup("fsdp1", "cuda", 2, FSDP_1),
    Setup("fsdp2", "cuda", 2, FSDP_2),
    Setup("zero2", "cuda", 2, ZERO, "deepspeed"),
    Setup("fp32", XLA, 1, UNFUSED, "torch_xla"),
    Setup("bf16", XLA, 1, (*UNFUSED, "--bf16", "True"), "torch_xla"),
)
"""All set-ups. FSDP of version 1 needs GPUs, and fp16 does under HF's Trainer."""


@dataclass
class Result:
    """What came of one set-up.

    Attributes:
        name: of the set-up.
        device: where it ran.
        outcome: "equal", "within spread", "differs" or "not available".
        why: the reason, or the first difference.
        report: of its runs; None where it has not run.
    """

    name: str
    device: str
    outcome: str
    why: str = ""
    report: Report | None = None


@dataclass
class Survey:
    """The support of a machine.

    Attributes:
        results: a result for each set-up and device.
    """

    results: list[Result]

    @property
    def status(self) -> int:
        """0 if no set-up differs, 1 if one does, 2 if none has run."""
        outcomes = {result.outcome for result in self.results}
        if "differs" in outcomes:
            return DIFFERS
        return EQUAL if outcomes & {"equal", "within spread"} else NOTHING

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        counts = [
            f"{sum(result.outcome == outcome for result in self.results)} {outcome}"
            for outcome in dict.fromkeys(result.outcome for result in self.results)
        ]
        word = {EQUAL: "equal", DIFFERS: "differs", NOTHING: "nothing verified"}[self.status]
        return f"{word}: of {len(self.results)} set-ups, {', '.join(counts)}."

    def renderable(self) -> Any:
        """Return the table and the verdict for a console of rich."""
        from rich.console import Group
        from rich.text import Text

        from compat.verification.report import COLORS, table

        rows = [
            (", ".join(result.name for result in alike), *shared)
            for shared, alike in itertools.groupby(
                self.results, key=lambda result: (result.device, result.outcome, result.why)
            )
        ]
        parts = (table(("set-up", "devices", "result", "why"), rows), Text())
        return Group(*parts, Text(self.verdict, style=f"bold {COLORS[self.status]}"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "status": self.status,
            "verdict": self.verdict,
            "setups": [
                {**vars(result), "report": result.report and result.report.to_dict()}
                for result in self.results
            ],
        }


def survey(
    command: Sequence[str],
    *,
    only: Sequence[str] = (),
    folder: str | None = None,
    progress: Callable[[str], Callable[[str, int], None] | None] = lambda _: None,
) -> Survey:
    """Verify all set-ups that this machine can run.

    Args:
        command: what starts a run, ahead of its job.
        only: names of set-ups; all of them if empty.
        folder: where the runs write.
        progress: takes the title of a set-up, and returns what `verified` calls.

    Raises:
        ArgumentError: a name is not one of a set-up.
    """
    names = {setup.name for setup in SETUPS}
    if unknown := [name for name in only if name not in names]:
        msg = f"`only={','.join(unknown)}`: no such set-up. Give some of {', '.join(sorted(names))}."
        raise ArgumentError(msg)
    results = []
    for setup in SETUPS:
        if not only or setup.name in only:
            results += [_tried(setup, place, command, folder, progress) for place in _places(setup)]
    return Survey(results)


@dataclass(frozen=True)
class _Place:
    """Devices for a set-up."""

    title: str
    variables: dict[str, str]
    obstacle: str = ""


def _places(setup: Setup) -> Iterator[_Place]:
    """Yield the devices on which a set-up runs: the CPU, an XLA device, each GPU, or several GPUs."""
    import torch

    count = torch.cuda.device_count()
    obstacle = setup.obstacle
    if setup.package and importlib.util.find_spec(setup.package) is None:
        obstacle = f"{setup.package} is not installed"
    if setup.kind == "cpu":
        title = "CPU" if setup.processes == 1 else f"CPU, {setup.processes} processes"
        # With torch_xla, transformers would not train on the CPU.
        yield _Place(title, {"CUDA_VISIBLE_DEVICES": "", "USE_TORCH_XLA": "0", **setup.variables}, obstacle)
    elif setup.kind == XLA:
        yield _Place("XLA", {"USE_TORCH_XLA": "1", **setup.variables}, obstacle)
    elif count == 0:
        yield _place_elsewhere(setup, obstacle)
    elif setup.processes > count:
        yield _Place(f"{setup.processes} GPUs", {}, f"of {setup.processes} GPUs, {count} is visible")
    elif setup.processes > 1:
        yield _Place(f"{setup.processes} GPUs", setup.variables, obstacle)
    else:
        for number, name in enumerate(visible_gpus(count)):
            title = f"GPU {number}, {torch.cuda.get_device_name(number)}"
            yield _Place(title, {"CUDA_VISIBLE_DEVICES": name, **setup.variables}, obstacle)


def _place_elsewhere(setup: Setup, obstacle: str) -> _Place:
    """Return the devices of a machine without a CUDA device; the first of them for a single process."""
    kind = Facts.device_type_here()
    if kind in {"cpu", XLA}:
        return _Place("GPU", {}, "no GPU is visible")
    count = ask(kind, "device_count", default=1)
    if setup.processes > count:
        return _Place(kind, {}, f"of {setup.processes} devices, {count} is visible")
    return _Place(kind if setup.processes == 1 else f"{kind}, {setup.processes} devices", {}, obstacle)


def _tried(
    setup: Setup,
    place: _Place,
    command: Sequence[str],
    folder: str | None,
    progress: Callable[[str], Callable[[str, int], None] | None],
) -> Result:
    if place.obstacle:
        return Result(setup.name, place.title, "not available", place.obstacle)
    on_cpu = ("--use_cpu", "True") if setup.kind == "cpu" else ()
    report = verified(
        Script(command, [os.path.abspath(builtin.__file__), *ARGUMENTS, *on_cpu, *setup.arguments]),
        f"{setup.name} on {place.title}",
        steps=0,
        repeats=1,
        devices=setup.processes,
        folder=folder,
        progress=progress(f"{setup.name}, {place.title}"),
        variables=place.variables,
    )
    return Result(setup.name, place.title, *_outcome(report), report)


def _outcome(report: Report) -> tuple[str, str]:
    """Return the outcome of a set-up, and why."""
    last = report.verdict.strip().splitlines()[-1]
    if report.status == NOTHING:
        return "not available", f"under HF's Trainer: {last}"
    if report.status == DIFFERS:
        return "differs", report.verdict.removeprefix("differs: ") if report.comparison else last
    assert report.comparison is not None
    if report.comparison.is_exact:
        return "equal", ""
    amount = max(row.amount for row in report.comparison.rows if math.isfinite(row.amount))
    return "within spread", f"HF's Trainer differs from itself; compat is at most {amount:.2g} away from it"
