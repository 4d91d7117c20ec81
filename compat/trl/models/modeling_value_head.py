"""Language models with a value head, which estimates a value for each token.

Mirrors `trl/models/modeling_value_head.py` of TRL 0.7.11.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from compat.errors import ArgumentError, CheckpointError
from compat.trl.models.modeling_base import PreTrainedModelWrapper
from compat.upstream.models import cache_argument

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_PREFIX = "v_head."
_OF_STATE_DICT = ("destination", "prefix", "keep_vars")
_NOT_ON_A_DEVICE = frozenset({"cpu", "disk"})


class ValueHead(nn.Module):
    """Dropout and one linear layer: hidden states of shape (…, hidden) to values of shape (…, 1).

    Args:
        config: the configuration of the model; its `summary_dropout_prob` overrides the argument.
        kwargs: `summary_dropout_prob`, by default 0.1.
    """

    def __init__(self, config: PretrainedConfig, **kwargs: Any) -> None:
        super().__init__()
        asked = kwargs.get("summary_dropout_prob", 0.1)
        probability = getattr(config, "summary_dropout_prob", asked)
        if "summary_dropout_prob" in kwargs and probability != asked:
            warnings.warn(
                f"`summary_dropout_prob={asked}`: the model's configuration says {probability}, which is "
                "taken. Change the configuration.",
                stacklevel=2,
            )
        self.dropout = nn.Dropout(probability) if probability else nn.Identity()
        self.summary = nn.Linear(_width(config), 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute the value of each hidden state, in the precision of the head's weights."""
        value: torch.Tensor = self.summary(self.dropout(hidden_states).to(self.summary.weight.dtype))
        return value


def _width(config: PretrainedConfig) -> int:
    """Return the number of features of the last hidden state, the input of the head."""
    decoder = getattr(config, "decoder", None) if getattr(config, "is_encoder_decoder", False) else None
    of_text = config.get_text_config() if hasattr(config, "get_text_config") else config
    # OPT projects the last hidden state back to the width of its embeddings.
    places = (
        (config, "word_embed_proj_dim"),
        (decoder, "hidden_size"),
        (config, "hidden_size"),
        (of_text, "hidden_size"),
    )
    for place, name in places:
        width: int | None = getattr(place, name, None)
        if width is not None:
            return width
    msg = (
        f"`pretrained_model`: {type(config).__name__} does not tell its `hidden_size`, which the value head "
        "needs. Set it on the configuration."
    )
    raise ArgumentError(msg)


class _WithValueHead(PreTrainedModelWrapper):
    """The common base class of the two kinds of language models.

    Args:
        pretrained_model: the model to wrap, or a PEFT model around one.
        kwargs: the arguments named in `supported_args`: `summary_dropout_prob`, `v_head_init_strategy` (None
            for torch's default, or "normal") and `v_head_initializer_range`, the standard deviation of
            "normal", by default 0.2.

    Raises:
        ValueError: the model has no language modeling head, or the strategy does not exist.
    """

    lm_head_namings: ClassVar[list[str]]
    supported_args: ClassVar[tuple[str, ...] | None] = (
        "summary_dropout_prob",
        "v_head_initializer_range",
        "v_head_init_strategy",
    )
    _states: ClassVar[str]

    def __init__(self, pretrained_model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        if not self._has_lm_head():
            msg = (
                f"`pretrained_model`: The model does not have a language model head, "
                f"{type(pretrained_model).__name__} has none of {self.lm_head_namings}. Please use a model "
                "that has one."
            )
            raise ArgumentError(msg)
        for_head, _, _ = self._split_kwargs(kwargs)
        self.v_head = ValueHead(self.pretrained_model.config, **for_head)
        self._init_weights(**for_head)

    def _has_lm_head(self) -> bool:
        return any(hasattr(self.pretrained_model, name) for name in self.lm_head_namings)

    def _init_weights(self, **kwargs: Any) -> None:
        """Reinitializes the head's weights, if a strategy was requested."""
        strategy = kwargs.get("v_head_init_strategy")
        if strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=kwargs.get("v_head_initializer_range", 0.2))
            nn.init.zeros_(self.v_head.summary.bias)
        elif strategy is not None:
            msg = f"`v_head_init_strategy={strategy!r}`: there is no such strategy. Take 'normal' or None."
            raise ArgumentError(msg)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Run the model, and compute a value from the last hidden state of each token.

        Args:
            input_ids: (batch, length).
            past_key_values: the cache of previous tokens; prefix tuning uses its own.
            attention_mask: (batch, length of the cache and of these tokens).
            kwargs: passed to the model.

        Returns:
            Logits in float32, (batch, length, vocab); the loss, if there are `labels`; values,
            (batch, length).
        """
        kwargs["output_hidden_states"] = True
        if not (self.is_peft_model and self.pretrained_model.active_peft_config.peft_type == "PREFIX_TUNING"):
            kwargs.update(cache_argument(self.pretrained_model, past_key_values))
        output = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        last = output[self._states][-1].to(self.v_head.summary.weight.device)
        return output.logits.float(), output.loss, self.v_head(last).squeeze(-1)

    def generate(self, *args: object, **kwargs: object) -> Any:
        """Generate with the wrapped model; see transformers' `generate`."""
        return self.pretrained_model.generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the model's weights under its own names, and the head's under `v_head.`.

        For a PEFT model, return only those of the head: PEFT saves the rest.
        """
        options = {**dict(zip(_OF_STATE_DICT, args)), **kwargs}  # noqa: B905 (the last ones may be missing)
        prefix = options.pop("prefix", "")
        if not self.is_peft_model:
            options["destination"] = self.pretrained_model.state_dict(**options, prefix=prefix)
        state: dict[str, Any] = self.v_head.state_dict(**options, prefix=f"{prefix}{_PREFIX}")
        return state

    def push_to_hub(self, *args: object, **kwargs: object) -> Any:
        """Upload the model or the adapter with the head; see `PreTrainedModel.push_to_hub`."""
        save = self.pretrained_model.save_pretrained
        self.pretrained_model.save_pretrained = lambda *a, **k: self._save(save, *a, **k)
        try:
            return self.pretrained_model.push_to_hub(*args, **kwargs)
        finally:
            del self.pretrained_model.save_pretrained

    def post_init(self, state_dict: dict[str, torch.Tensor]) -> None:  # type: ignore[override]
        """Load the head's weights, and move the head to the device of the model's last layers.

        Args:
            state_dict: weights by name; may contain those of the head, under names with `v_head.`.

        Raises:
            CheckpointError: some of the head's weights are missing, or have another shape.
            ValueError: a part of the model is offloaded to the CPU or the disk, and is moved to the device
                only for its own forward pass.
        """
        found = {
            name.rpartition(_PREFIX)[2]: tensor for name, tensor in state_dict.items() if _PREFIX in name
        }
        if found:
            self._load_head(found)
        if hasattr(self.pretrained_model, "hf_device_map"):
            self._follow_devices(self.pretrained_model.hf_device_map)

    def _load_head(self, found: dict[str, torch.Tensor]) -> None:
        missing = sorted(self.v_head.state_dict().keys() - found.keys())
        try:
            self.v_head.load_state_dict(found, strict=False)
        except RuntimeError as error:
            msg = (
                f"`v_head`: the saved weights do not fit ({error}). Load the model that they were saved with."
            )
            raise CheckpointError(msg) from error
        if missing:
            msg = (
                f"`v_head`: the checkpoint has some of its weights, but no {', '.join(missing)}. "
                "Save the model again, or remove the others, too."
            )
            raise CheckpointError(msg)

    def _follow_devices(self, device_map: dict[str, Any]) -> None:
        """Put the head on the device of the last layers, and move the model's outputs to one device."""
        if not _NOT_ON_A_DEVICE.isdisjoint(map(str, device_map.values())):
            msg = (
                f"`device_map={device_map}`: The model is offloaded on CPU or disk - CPU & disk offloading "
                "is not supported for ValueHead models. Give a `device_map` of devices only, or none."
            )
            raise ArgumentError(msg)
        device = self._device_of_outputs(device_map)
        self.v_head = self.v_head.to(device)
        self.register_forward_hook(
            lambda _module, _inputs, outputs: tuple(
                output.to(device) if isinstance(output, torch.Tensor) else output for output in outputs
            )
        )
        self.is_sequential_parallel = True

    def _device_of_outputs(self, device_map: dict[str, Any]) -> Any:
        return next(iter(device_map.values()))


class AutoModelForCausalLMWithValueHead(_WithValueHead):
    """A causal language model, for example GPT-2, with a value head."""

    transformers_parent_class: ClassVar[Any] = AutoModelForCausalLM
    lm_head_namings: ClassVar[list[str]] = ["lm_head", "embed_out"]
    _states: ClassVar[str] = "hidden_states"


class AutoModelForSeq2SeqLMWithValueHead(_WithValueHead):
    """An encoder-decoder model, for example T5, with a value head for the decoded tokens."""

    transformers_parent_class: ClassVar[Any] = AutoModelForSeq2SeqLM
    lm_head_namings: ClassVar[list[str]] = ["lm_head", "embed_out", "output_projection"]
    _states: ClassVar[str] = "decoder_hidden_states"

    def __init__(self, pretrained_model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        self.is_encoder_decoder = True

    def _has_lm_head(self) -> bool:
        return any(self._is_lm_head(name) for name, _ in self.pretrained_model.named_modules())

    def _is_lm_head(self, name: str) -> bool:
        return any(naming in name for naming in self.lm_head_namings)

    def _device_of_outputs(self, device_map: dict[str, Any]) -> Any:
        heads = (head for name, head in self.pretrained_model.named_modules() if self._is_lm_head(name))
        return next(heads).weight.device
