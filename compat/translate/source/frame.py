"""The parts of a script around its classes: its docstring, its imports and its last lines."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from compat.translate.source.recipe import literal

if TYPE_CHECKING:
    from compat.translate.source.recipe import Recipe

WIDTH = 100
"""Characters in a line of the docstring."""

STANDARD = ("functools", "inspect", "itertools", "math", "pkgutil", "re", "sys")
"""Modules that are imported where the text says `name.`."""

OTHERS = (
    ("lightning.pytorch.callbacks", ("ModelCheckpoint",)),
    ("lightning.pytorch.loggers", ("CSVLogger",)),
    ("torch.utils.data", ("DataLoader", "IterableDataset", "Sampler")),
    (
        "transformers",
        ("Adafactor", "default_data_collator", "enable_full_determinism", "get_scheduler", "set_seed"),
    ),
    ("transformers.loss.loss_utils", ("LOSS_MAPPING", "ForCausalLMLoss")),
    ("transformers.trainer_utils", ("seed_worker",)),
)
"""Names that are imported where the text has them."""


def header_lines(recipe: Recipe) -> list[str]:
    """The docstring of the script."""
    lines = [
        '"""Trains a Hugging Face model with PyTorch Lightning, as its Trainer did with the same arguments.',
        "",
        "Comments name the argument that a line comes from. Run it with a function that returns the model,",
        "the train dataset, the evaluation dataset and the collator, of which the last two may be None:",
        "",
        "    python script.py package.module:function",
    ]
    for paragraph in _notes(recipe):
        lines += ["", *textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)]
    return [*lines, '"""', "", "from __future__ import annotations", ""]


def _notes(recipe: Recipe) -> list[str]:
    left_out, flags = recipe.not_carried_over(), recipe.plan.flags
    notes = [f"Not carried over: {', '.join(left_out)}."] if left_out else []
    if recipe.plan.strategy != "single_device" or flags["devices"] != 1:
        notes.append(
            "Written for one process: with several, Lightning's sampler decides who sees which samples, and "
            "each process counts its own tokens."
        )
    if recipe.has_windows and recipe.max_steps:
        notes.append(
            "Where a dataset without length ends within an update step, that step is a short one; HF adds "
            "its gradients to the next."
        )
    if recipe.plan.precision == "16-mixed":
        notes.append("Where fp16 overflows and the optimizer's step is left out, the schedule goes on.")
    return notes


def import_lines(body: str) -> list[str]:
    """The imports that `body` needs, sorted.

    Args:
        body: the text that follows them.
    """
    standard = [f"import {name}" for name in STANDARD if f"{name}." in body]
    neural = ["from torch import nn"] if " nn." in body else []
    found = {module: [name for name in names if name in body] for module, names in OTHERS}
    others = {module: f"from {module} import {', '.join(names)}" for module, names in found.items() if names}
    lightning = [line for module, line in others.items() if module.startswith("lightning")]
    rest = [line for module, line in others.items() if not module.startswith("lightning")]
    return [*standard, "", "import lightning as L", "import torch", *lightning, *neural, *rest, ""]


def constant_lines(recipe: Recipe, body: str) -> list[str]:
    """The constants that `body` needs.

    Args:
        recipe: the plan.
        body: the text that follows them.
    """
    constants = {
        "OUTPUT_DIR": f"{literal(recipe.get('output_dir'))}  # output_dir",
        "NO_DECAY": r're.compile(r"bias|layernorm|rmsnorm|(^|\.|_)norm($|\.)")',
    }
    lines = [f"{name} = {value}" for name, value in constants.items() if name in body]
    return [*lines, ""] if lines else []


def main_lines() -> list[str]:
    """The lines that make it a program."""
    return ["", "", 'if __name__ == "__main__":', "    train(*pkgutil.resolve_name(sys.argv[1])())"]
