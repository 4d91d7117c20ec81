"""Loading of models by name, and their PEFT adapters."""

from __future__ import annotations

import inspect
import logging
import os
from typing import TYPE_CHECKING, Any

from compat.errors import ArgumentError, MissingLibraryError
from compat.trl.import_utils import is_peft_available
from compat.trl.models.files import (
    DOWNLOAD,
    draw_as_then,
    find,
    load_model,
    read_modules,
    refuse_half,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
_ADAPTER_CONFIG = "adapter_config.json"


class Loading:
    """A model that is loaded by its name, and the other files under that name.

    Args:
        auto_class: the class that loads the model.
        source: the folder, or the name on the Hub, of a model or an adapter.
        model_args: passed to transformers.
        kwargs: passed to transformers.
    """

    def __init__(
        self, auto_class: type, source: str, model_args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.auto_class = auto_class
        self.source = source
        self.model_args = model_args
        self.kwargs = kwargs
        self.download = {name: kwargs[name] for name in DOWNLOAD if name in kwargs}

    def choose_device(self, device: int | str) -> None:
        """Put a model in 8 or 4 bits on this process's device, unless `device_map` is given."""
        if is_kbit(None, self.kwargs) and "device_map" not in self.kwargs:
            _LOG.warning(
                "The `device_map` argument is not provided: the whole model is put on the current device, "
                "%r. Give a `device_map` to spread it over several.",
                device,
            )
            self.kwargs["device_map"] = {"": device}

    def model(self, *, is_trainable: bool) -> PreTrainedModel | PeftModel:
        """Load the model, or an adapter and the model that its configuration names."""
        adapter = find(self.source, _ADAPTER_CONFIG, **self.download) if is_peft_available() else None
        if adapter is None:
            return self._load(self.source)
        from peft import PeftConfig, PeftModel

        refuse_half(self.source)
        base = PeftConfig.from_pretrained(os.path.dirname(adapter)).base_model_name_or_path
        return PeftModel.from_pretrained(
            self._load(base), self.source, is_trainable=is_trainable, **self.download
        )

    def _load(self, source: str) -> PreTrainedModel:
        model = load_model(self.auto_class, source, *self.model_args, **self.kwargs)
        if "device_map" not in self.kwargs:
            draw_as_then(model, source, **self.download)
        return model

    def modules(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Read the weights of the wrapper's additional modules; empty if they were never saved."""
        found = read_modules(self.source, names, **self.download)
        if not found:
            _LOG.warning(
                "The model is loaded from '%s', and no weights of %s are found. This IS expected if you are "
                "not resuming PPO training.",
                self.source,
                " or ".join(names),
            )
        return found


def is_peft(model: object) -> bool:
    """Whether a model is a PEFT model."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def is_kbit(model: object, kwargs: dict[str, Any]) -> bool:
    """Whether a model is loaded in 8 or 4 bits, or its arguments request this."""
    return any(
        kwargs.get(f"load_in_{bits}") or getattr(model, f"is_loaded_in_{bits}", False)
        for bits in ("8bit", "4bit")
    )


def arguments_for_kbit() -> frozenset[str]:
    """Return the argument names of `prepare_model_for_kbit_training`; PEFT must be installed."""
    from peft import prepare_model_for_kbit_training

    return frozenset(inspect.signature(prepare_model_for_kbit_training).parameters) - {"model"}


def check_adapters(peft_config: object, reward_adapter: object) -> None:
    """Refuse arguments that are not adapters.

    Raises:
        ArgumentError: one of the two has a wrong type.
        MissingLibraryError: PEFT is not installed.
    """
    if reward_adapter is not None and not isinstance(reward_adapter, str):
        msg = (
            f"The `reward_adapter` argument should be a string representing the folder or the Hub id of an "
            f"adapter, but is {reward_adapter!r}. Save the adapter and give its place."
        )
        raise ArgumentError(msg)
    if peft_config is None:
        return
    if not is_peft_available():
        msg = f"`peft_config={peft_config!r}`: PEFT is not installed. Run `pip install peft`."
        raise MissingLibraryError(msg)
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig):
        msg = (
            f"The `peft_config` argument should be an instance of `peft.PeftConfig` class, but is "
            f"{type(peft_config)}. Make one, `peft.LoraConfig(…)` for instance."
        )
        raise ArgumentError(msg)


def with_adapter(
    model: PreTrainedModel, peft_config: PeftConfig, for_kbit: dict[str, Any], *, is_in_bits: bool
) -> PeftModel:
    """Add a new adapter to a model that has none.

    Args:
        model: the model.
        peft_config: the configuration of the adapter.
        for_kbit: arguments of PEFT's `prepare_model_for_kbit_training`.
        is_in_bits: whether to call this function.

    Returns:
        A `PeftModel`.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if is_peft(model):
        _LOG.warning("`peft_config` argument ignored since the model has an adapter of its own.")
        return model
    if is_in_bits:
        model = prepare_model_for_kbit_training(model, **for_kbit)
    return get_peft_model(model, peft_config)


def refuse_prompt_learning(model: object) -> None:
    """Refuse adapters that prepend tokens to the prompt.

    Raises:
        ArgumentError: the model has such an adapter.
    """
    if not is_peft(model):
        return
    from peft import PromptLearningConfig

    config = getattr(model, "active_peft_config", None)
    if isinstance(config, PromptLearningConfig):
        msg = (
            f"`peft_config` of the kind {config.peft_type}: PromptLearningConfig is not supported for PPO "
            "training. Use LoRA or another adapter that sits in the layers."
        )
        raise ArgumentError(msg)
