"""The optimizers that a script can build, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ADAM = (
    ("betas=({adam_beta1}, {adam_beta2})", "adam_beta1, adam_beta2"),
    ("eps={adam_epsilon}", "adam_epsilon"),
)


@dataclass(frozen=True)
class Optimizer:
    """One value of `optim`.

    Attributes:
        name: its class, as the script calls it.
        lines: arguments besides the learning rate, each with the HF arguments that it comes from.
        floats: numbers that `optim_args` may give; not the weight decay, which HF sets for each group.
        flags: switches that `optim_args` may give.
        decay: the weight decay of the class where none is given.
    """

    name: str
    lines: tuple[tuple[str, str], ...] = ()
    floats: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    decay: float = 0.0


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_torch": Optimizer("torch.optim.AdamW", _ADAM, decay=0.01),
    "adamw_torch_fused": Optimizer("torch.optim.AdamW", (*_ADAM, ("fused=True", "optim")), decay=0.01),
    "adafactor": Optimizer("Adafactor", (("scale_parameter=False", ""), ("relative_step=False", ""))),
    "sgd": Optimizer("torch.optim.SGD", (), ("momentum", "dampening"), ("nesterov",)),
    "adagrad": Optimizer("torch.optim.Adagrad", (), ("lr_decay", "eps")),
    "rmsprop": Optimizer("torch.optim.RMSprop", (), ("momentum", "alpha", "eps"), ("centered",)),
}
"""`optim` → what HF builds for it."""


def given_options(optimizer: Optimizer, optim_args: str | None) -> dict[str, Any]:
    """What `optim_args` says, read as HF reads it.

    Args:
        optimizer: the optimizer, which knows some names and passes over the others.
        optim_args: names and values, as `a=1,b=2`.
    """
    pairs = (optim_args or "").replace(" ", "").split(",")
    texts = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {
        **{name: float(texts[name]) for name in optimizer.floats if name in texts},
        **{name: texts[name].lower() in {"true", "1", "yes"} for name in optimizer.flags if name in texts},
    }
