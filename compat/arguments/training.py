"""`TrainingArguments`: HF's class, without its side effects on the process."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from compat.upstream.environment import contained


class SelfContained:
    """Keeps what HF's arguments write into the environment on the instance that wrote it.

    Mixed precision, compilation and sharding reach accelerate as `ACCELERATE_*` and `FSDP_*` variables, and
    would be read by the next run in the same process. The trainer shows them to accelerate only while it
    builds the accelerator of this run.
    """

    accelerate_environment: dict[str, str]

    def __post_init__(self) -> None:
        with contained() as written:
            super().__post_init__()  # type: ignore[misc]
        # Fields alone make up `to_dict()`; this is no field, so that it is never logged or saved with them.
        object.__setattr__(self, "accelerate_environment", written)


@dataclass(repr=False)
class TrainingArguments(SelfContained, transformers.TrainingArguments):  # type: ignore[misc]
    """The arguments of a training run: HF's fields, defaults and methods, letter for letter.

    Mirrors `transformers.TrainingArguments`; an instance is one. Step counts are update steps (optimizer
    steps), batch sizes are samples per device and micro-step.

    Raises:
        ValueError: HF's own errors for values that contradict each other.
    """

    __doc__ = transformers.TrainingArguments.__doc__
