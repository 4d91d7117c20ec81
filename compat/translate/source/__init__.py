"""Renders a plan as a standalone Lightning script, for users who leave the HF API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.translate.source.data_source import data_lines
from compat.translate.source.frame import constant_lines, header_lines, import_lines, main_lines
from compat.translate.source.module_source import module_lines
from compat.translate.source.recipe import Recipe
from compat.translate.source.train import train_lines

if TYPE_CHECKING:
    from compat.translate.plan import LightningPlan


def source(plan: LightningPlan) -> str:
    """Return the text of a script that trains according to the plan.

    It needs torch, Lightning and public helpers of transformers. With one process, its training losses are
    bit-identical to those of HF's Trainer.

    Args:
        plan: the plan.

    Returns:
        Python source, formatted for lines of 110 characters.
    """
    recipe = Recipe(plan)
    body = [*module_lines(recipe), *data_lines(recipe), *train_lines(recipe), *main_lines()]
    constants = constant_lines(recipe, "\n".join(body))
    imports = import_lines("\n".join([*constants, *body]))
    return "\n".join([*header_lines(recipe), *imports, *constants, *body, ""])


__all__ = ["source"]
