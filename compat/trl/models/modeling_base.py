"""The wrapper of a transformers model, and the reference copy of a policy.

Mirrors `trl/models/modeling_base.py` of TRL 0.7.11.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from compat.checkpoint.pickled import as_pickles
from compat.errors import ArgumentError
from compat.trl.import_utils import is_npu_available, is_peft_available, is_xpu_available
from compat.trl.models.adapters import (
    Loading,
    arguments_for_kbit,
    check_adapters,
    is_kbit,
    is_peft,
    refuse_prompt_learning,
    with_adapter,
)
from compat.trl.models.files import find, read, refuse_half
from compat.upstream.environment import local_rank
from compat.upstream.features import accepts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYER_PATTERNS = [
    "transformer.h.{layer}",
    "model.decoder.layers.{layer}",
    "gpt_neox.layers.{layer}",
    "model.layers.{layer}",
]
"""Layer names of known models, with `{layer}` for the number of a layer."""

_LOG = logging.getLogger(__name__)
_ADAPTER_WEIGHTS = ("adapter_model.bin", "adapter_model.safetensors")
_HEAD_OF_ADAPTER = "pytorch_model.bin"
_BORROWED = (
    "prepare_inputs_for_generation",
    "gradient_checkpointing_disable",
    "gradient_checkpointing_enable",
)


class _Architectures:
    """The classes that can be wrapped; they include those of PEFT if it can be imported."""

    def __get__(self, instance: object, owner: object = None) -> tuple[type, ...]:
        if not is_peft_available():
            return (PreTrainedModel,)
        from peft import PeftModelForCausalLM, PeftModelForSeq2SeqLM

        return (PreTrainedModel, PeftModelForCausalLM, PeftModelForSeq2SeqLM)


class PreTrainedModelWrapper(nn.Module):
    """A transformers model, or a PEFT model around one, with additional modules.

    Subclasses declare these in class attributes, and define `state_dict`, `post_init` and `push_to_hub`.

    Attributes:
        transformers_parent_class: the class that loads the wrapped model, for example `AutoModelForCausalLM`.
        supported_args: the arguments of the subclass itself.
        supported_modules: the names of the additional modules, which identify their weights in a checkpoint.
        supported_rm_modules: the possible names of the head of a reward adapter.
        supported_pretrained_model_architectures: the classes that can be wrapped.
        pretrained_model: the wrapped model.
        is_peft_model: whether it is a PEFT model.

    Args:
        pretrained_model: the model to wrap.
        score_module: the head of the reward adapter.
        supports_rm_adapter: whether there is a reward adapter.
        rm_adapter_name: its name.
        kwargs: the arguments named in `supported_args`, read by the subclass.
    """

    transformers_parent_class: ClassVar[Any] = None
    supported_args: ClassVar[tuple[str, ...] | None] = None
    supported_modules: ClassVar[tuple[str, ...]] = ("v_head",)
    supported_rm_modules: ClassVar[tuple[str, ...]] = ("score",)
    supported_pretrained_model_architectures: ClassVar[Any] = _Architectures()

    def __init__(
        self,
        pretrained_model: Any = None,
        score_module: nn.Module | None = None,
        supports_rm_adapter: bool = False,
        rm_adapter_name: str | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__()
        for name in sorted(kwargs.keys() - {*(self.supported_args or ())}):
            warnings.warn(
                f"`{name}={kwargs[name]!r}`: {type(self).__name__} has no such argument, so that it does "
                f"nothing. It takes {', '.join(self.supported_args or ('none',))}.",
                stacklevel=3,
            )
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        for name in _BORROWED:
            if hasattr(pretrained_model, name):
                setattr(self, name, getattr(pretrained_model, name))
        self.is_loaded_in_8bit = getattr(pretrained_model, "is_loaded_in_8bit", False)
        self.is_loaded_in_4bit = getattr(pretrained_model, "is_loaded_in_4bit", False)
        self.is_sequential_parallel = False
        self.is_peft_model = is_peft(pretrained_model)
        self.current_device = self._get_current_device()

        self.supports_rm_adapter = supports_rm_adapter
        self.rm_adapter_name = rm_adapter_name
        self.policy_adapter_name = "default"
        if score_module is not None:
            self.score = score_module

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: object, **kwargs: Any) -> Any:
        """Wrap a model, loaded or given, and load the saved weights of the additional modules.

        Args:
            pretrained_model_name_or_path: a folder, a name on the Hub, or a model. A folder may hold a model
                or an adapter, saved by this class or by transformers or PEFT.
            model_args: passed to transformers.
            kwargs: `supported_args`; `peft_config` (adds a new adapter to the model), `is_trainable`
                (whether training of a loaded adapter continues), `reward_adapter` (the folder or name of an
                adapter with a score head) and `reward_adapter_name`; arguments of PEFT's
                `prepare_model_for_kbit_training`; all others are passed to transformers.

        Raises:
            ValueError: an argument has a wrong type, or the adapter uses prompt learning.
            CheckpointError: weights are truncated, incomplete, or lack a shard.
            MissingLibraryError: an adapter was requested, and PEFT is not installed.
        """
        peft_config = kwargs.pop("peft_config", None)
        reward_adapter = kwargs.pop("reward_adapter", None)
        reward_adapter_name = kwargs.pop("reward_adapter_name", "reward_adapter")
        is_trainable = kwargs.pop("is_trainable", False)
        own, for_model, for_kbit = cls._split_kwargs(kwargs)
        check_adapters(peft_config, reward_adapter)

        if isinstance(pretrained_model_name_or_path, str):
            load = Loading(
                cls.transformers_parent_class, pretrained_model_name_or_path, model_args, for_model
            )
            load.choose_device(cls._get_current_device())
            inner = load.model(is_trainable=is_trainable)
        elif isinstance(pretrained_model_name_or_path, cls.supported_pretrained_model_architectures):
            load, inner = None, pretrained_model_name_or_path
        else:
            msg = (
                "`pretrained_model_name_or_path` should be a string or a PreTrainedModel, but is "
                f"{type(pretrained_model_name_or_path)}. Give a folder, a name on the Hub, or a model."
            )
            raise ArgumentError(msg)

        if peft_config is not None:
            inner = with_adapter(inner, peft_config, for_kbit, is_in_bits=is_kbit(inner, for_model))
        refuse_prompt_learning(inner)
        if reward_adapter is not None:
            own |= cls._reward_arguments(inner, reward_adapter, reward_adapter_name, for_model.get("token"))
        model = cls(inner, **own)
        model.post_init(
            state_dict=inner.state_dict() if load is None else load.modules(cls.supported_modules)
        )
        return model

    @classmethod
    def _reward_arguments(
        cls, inner: PreTrainedModel, adapter: str, name: str, token: str | bool | None
    ) -> dict[str, Any]:
        if not is_peft(inner):
            msg = (
                f"`reward_adapter={adapter!r}`: reward_adapter can only be used with a PeftModel. "
                "Give a `peft_config`, or load an adapter."
            )
            raise ArgumentError(msg)
        score = cls.add_and_load_reward_modeling_adapter(inner, adapter, name, token=token)
        return {"score_module": score, "supports_rm_adapter": True, "rm_adapter_name": name}

    @classmethod
    def _get_current_device(cls) -> int | str:
        """Return the device of this process: the number of a GPU, `xpu:N`, `npu:N` or `cpu`."""
        index = local_rank()
        if is_xpu_available():
            return f"xpu:{index}"
        if is_npu_available():
            return f"npu:{index}"
        return index if torch.cuda.is_available() else "cpu"

    @classmethod
    def _split_kwargs(cls, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split arguments into those of this class, of transformers, and of PEFT's k-bit preparation."""
        own_names = cls.supported_args or ()
        peft_names = arguments_for_kbit() if is_peft_available() else frozenset()
        own = {key: value for key, value in kwargs.items() if key in own_names}
        for_kbit = {key: value for key, value in kwargs.items() if key in peft_names}
        return own, {key: kwargs[key] for key in kwargs if key not in own and key not in for_kbit}, for_kbit

    @classmethod
    def add_and_load_reward_modeling_adapter(
        cls,
        pretrained_model: PreTrainedModel,
        adapter_model_id: str,
        adapter_name: str = "reward_model_adapter",
        token: Any = None,
    ) -> nn.Linear:
        """Add a second adapter, which was trained as a reward model, to the policy's.

        Args:
            pretrained_model: the `PeftModel` of the policy.
            adapter_model_id: a folder or a name on the Hub; its weights include the score head.
            adapter_name: the name of the adapter in the model.
            token: the token for the Hub.

        Returns:
            The frozen score head: (…, hidden) to (…, labels).

        Raises:
            ValueError: the weights do not exist, or do not include a score head.
        """
        refuse_half(adapter_model_id)
        access = {} if token is None else {"token": token}
        pretrained_model.load_adapter(adapter_model_id, adapter_name, is_trainable=False, **access)
        pretrained_model.train()
        paths = (find(adapter_model_id, name, token=token) for name in _ADAPTER_WEIGHTS)
        path = next(filter(None, paths), None)
        if path is None:
            msg = (
                f"`reward_adapter={adapter_model_id!r}`: Could not find adapter model in the Hub, nor in a "
                f"folder of that name, with a file {' or '.join(_ADAPTER_WEIGHTS)}. "
                "Make sure you have the correct adapter model id."
            )
            raise ArgumentError(msg)
        return cls._score_head(adapter_model_id, read(path), pretrained_model.dtype)

    @classmethod
    def _score_head(cls, adapter: str, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> nn.Linear:
        for candidate in cls.supported_rm_modules:
            found = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items() if candidate in name}
            if "weight" in found:
                break
        else:
            msg = (
                f"`reward_adapter={adapter!r}`: among its weights there is no head with a name in "
                f"{cls.supported_rm_modules}. Save the adapter of a reward model, with its head in "
                "`modules_to_save`."
            )
            raise ArgumentError(msg)
        labels, hidden = found["weight"].shape
        score = nn.Linear(hidden, labels, bias="bias" in found)
        score.load_state_dict(found)
        return score.to(device=cls._get_current_device(), dtype=dtype).requires_grad_(False)

    def push_to_hub(self, *args: object, **kwargs: object) -> str:
        """Upload the model; defined by subclasses."""
        msg = f"{type(self).__name__} does not say what it uploads. Define `push_to_hub`."
        raise NotImplementedError(msg)

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights that are saved; defined by subclasses."""
        msg = f"{type(self).__name__} does not say what it saves. Define `state_dict`."
        raise NotImplementedError(msg)

    def post_init(self, *args: object, **kwargs: object) -> None:
        """Load the weights that `from_pretrained` has found; defined by subclasses."""
        msg = f"{type(self).__name__} does not say what it loads. Define `post_init`."
        raise NotImplementedError(msg)

    def save_pretrained(self, *args: object, **kwargs: object) -> Any:
        """Save the model with its additional modules, as `PreTrainedModel.save_pretrained` does.

        An adapter is saved by PEFT, and the additional modules next to it in `pytorch_model.bin`.

        Args:
            args: the folder, followed by further arguments.
            kwargs: as for transformers, or PEFT. `state_dict` replaces this model's own;
                `safe_serialization=False` writes pickles with every release of transformers.
        """
        return self._save(self.pretrained_model.save_pretrained, *args, **kwargs)

    def _save(self, save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = kwargs.pop("state_dict", None)
        state = dict(self.state_dict() if state is None else state)
        folder = os.fspath(args[0] if args else kwargs["save_directory"])
        if not self.is_peft_model:
            kwargs["state_dict"] = state
        elif kwargs.get("is_main_process", True):
            _write_whole(state, folder, _HEAD_OF_ADAPTER)
        wants_pickles = kwargs.get("safe_serialization") is False and not accepts(save, "safe_serialization")
        if wants_pickles:
            del kwargs["safe_serialization"]
        saved = save(*args, **kwargs)
        if wants_pickles and kwargs.get("is_main_process", True) and _is_first():
            as_pickles(folder)
        return saved

    def compute_reward_score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: object
    ) -> torch.Tensor:
        """Score tokens with the reward adapter, then reactivate the policy's; leaves the model in eval mode.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            kwargs: passed to the model.

        Returns:
            (batch, length, labels), without gradients.

        Raises:
            ValueError: there is no reward adapter.
        """
        if not self.supports_rm_adapter:
            msg = (
                "This model does not support reward modeling adapter: `reward_adapter` was not given. "
                "Load it by `from_pretrained(…, reward_adapter=…)`."
            )
            raise ArgumentError(msg)
        with self._rewarding(), torch.no_grad():
            output = self.pretrained_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_hidden_states=True,
                return_dict=True,
                **kwargs,
            )
            scores: torch.Tensor = self.score(output.hidden_states[-1])
        return scores

    @contextlib.contextmanager
    def _rewarding(self) -> Iterator[None]:
        self.pretrained_model.set_adapter(self.rm_adapter_name)
        self.pretrained_model.eval()
        try:
            yield
        finally:
            self.pretrained_model.set_adapter(self.policy_adapter_name)
            self.pretrained_model.eval()


def _is_first() -> bool:
    """Whether this process is the one that writes what all processes save under transformers 5."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _write_whole(state: dict[str, Any], folder: str, name: str) -> None:
    """Write a pickle atomically: it gets its name once it is complete."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    # Every process may be told to save.
    own = f"{path}.{os.getpid()}.tmp"
    torch.save(state, own)
    os.replace(own, path)


def create_reference_model(
    model: PreTrainedModelWrapper, num_shared_layers: int | None = None, pattern: str | None = None
) -> PreTrainedModelWrapper:
    """Copy a model as the reference of the policy.

    With `num_shared_layers`, the lower layers stay equal in both, since they are frozen in the policy.

    Args:
        model: the policy.
        num_shared_layers: the number of layers, from the first one on, that are frozen in `model`, together
            with all parameters before them, such as embeddings.
        pattern: the pattern of layer names, with `{layer}` for the number; known models need none.

    Returns:
        The copy, in eval mode; its parameters that are not shared do not require gradients.

    Raises:
        ValueError: DeepSpeed's ZeRO-3 has sharded the weights, or no known pattern matches.
    """
    if is_deepspeed_zero3_enabled():
        msg = (
            "DeepSpeed ZeRO-3 is enabled and is not compatible with `create_reference_model()`: no process "
            "has the whole weights. Load the reference model with `from_pretrained()`."
        )
        raise ArgumentError(msg)
    names = [name for name, _ in model.named_parameters()]
    first_free = 0 if num_shared_layers is None else _first_free(names, num_shared_layers, pattern)
    reference = deepcopy(model)
    for name in names[:first_free]:
        model.get_parameter(name).requires_grad_(False)
    for name in names[first_free:]:
        reference.get_parameter(name).requires_grad_(False)
    return reference.eval()


def _first_free(names: list[str], num_shared_layers: int, pattern: str | None) -> int:
    """Return the number of parameters, in the order of the model, before layer `num_shared_layers`."""
    patterns = LAYER_PATTERNS if pattern is None else [pattern]
    for candidate in patterns:
        layer = candidate.format(layer=num_shared_layers)
        for place, name in enumerate(names):
            if layer in name:
                return place
    if pattern is None:
        msg = (
            f"`num_shared_layers={num_shared_layers}`: Layer pattern could not be matched. Give the "
            "`pattern` of its layers, as 'transformer.h.{layer}', and a number below that of its layers."
        )
        raise ArgumentError(msg)
    _LOG.warning(
        "`pattern=%r`: no layers matched in the model, so that all of it is shared. Check for a typo.",
        pattern,
    )
    return len(names)
