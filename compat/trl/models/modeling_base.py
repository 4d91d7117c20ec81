"""The wrapper that stands around a transformers model, and the copy that a policy is held against.

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
"""How the layers of known models are named, `{layer}` being a layer's number."""

_LOG = logging.getLogger(__name__)
_ADAPTER_WEIGHTS = ("adapter_model.bin", "adapter_model.safetensors")
_HEAD_OF_ADAPTER = "pytorch_model.bin"
_BORROWED = (
    "prepare_inputs_for_generation",
    "gradient_checkpointing_disable",
    "gradient_checkpointing_enable",
)


class _Architectures:
    """The classes that can be wrapped: those of PEFT are among them as long as it can be imported."""

    def __get__(self, instance: object, owner: object = None) -> tuple[type, ...]:
        if not is_peft_available():
            return (PreTrainedModel,)
        from peft import PeftModelForCausalLM, PeftModelForSeq2SeqLM

        return (PreTrainedModel, PeftModelForCausalLM, PeftModelForSeq2SeqLM)


class PreTrainedModelWrapper(nn.Module):
    """A transformers model, or an adapter of PEFT around one, with further modules beside it.

    Subclasses say which by their class attributes, and define `state_dict`, `post_init` and `push_to_hub`.

    Attributes:
        transformers_parent_class: class that loads the wrapped model, `AutoModelForCausalLM` for one.
        supported_args: arguments that the subclass takes for itself.
        supported_modules: names of the further modules, by which their weights are found in a checkpoint.
        supported_rm_modules: names that the head of a reward adapter may have.
        supported_pretrained_model_architectures: classes that can be wrapped.
        pretrained_model: the wrapped model.
        is_peft_model: whether that is an adapter's.

    Args:
        pretrained_model: the model to wrap.
        score_module: head of the reward adapter.
        supports_rm_adapter: whether there is one.
        rm_adapter_name: the adapter's name.
        kwargs: what `supported_args` names, read by the subclass.
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
        """Loads a model, or takes one, and wraps it; weights of the further modules come along.

        Args:
            pretrained_model_name_or_path: folder, name on the Hub, or a model. A folder may hold a model
                or an adapter, saved by this class or by transformers or PEFT.
            model_args: handed to transformers.
            kwargs: `supported_args`; `peft_config` (a new adapter is put on the model), `is_trainable`
                (whether a loaded adapter is trained further), `reward_adapter` (folder or name of an adapter
                with a score head) and `reward_adapter_name`; arguments of PEFT's
                `prepare_model_for_kbit_training`; all others go to transformers.

        Raises:
            ValueError: an argument is of the wrong kind, or the adapter is one of prompt learning.
            CheckpointError: weights are cut short, incomplete, or lack a shard.
            MissingLibraryError: an adapter was asked for, and PEFT is not installed.
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
        """Where this process puts a model: the number of a GPU, `xpu:N`, `npu:N` or `cpu`."""
        index = local_rank()
        if is_xpu_available():
            return f"xpu:{index}"
        if is_npu_available():
            return f"npu:{index}"
        return index if torch.cuda.is_available() else "cpu"

    @classmethod
    def _split_kwargs(cls, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sorts arguments by whom they are for: this class, transformers, PEFT's preparation for k bits."""
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
        """Puts a second adapter, which was trained as a reward model, beside the policy's.

        Args:
            pretrained_model: the `PeftModel` of the policy.
            adapter_model_id: folder or name on the Hub; its weights have the score head among them.
            adapter_name: name that the adapter gets.
            token: for the Hub.

        Returns:
            The score head, frozen: (…, hidden) to (…, labels).

        Raises:
            ValueError: there are no such weights, or no score head among them.
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
        """Uploads the model; subclasses say how."""
        msg = f"{type(self).__name__} does not say what it uploads. Define `push_to_hub`."
        raise NotImplementedError(msg)

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Any]:  # type: ignore[override]
        """Returns the weights that are saved; subclasses say which."""
        msg = f"{type(self).__name__} does not say what it saves. Define `state_dict`."
        raise NotImplementedError(msg)

    def post_init(self, *args: object, **kwargs: object) -> None:
        """Takes over the weights that `from_pretrained` has found; subclasses say how."""
        msg = f"{type(self).__name__} does not say what it loads. Define `post_init`."
        raise NotImplementedError(msg)

    def save_pretrained(self, *args: object, **kwargs: object) -> Any:
        """Saves the model with its further modules, as `PreTrainedModel.save_pretrained` does.

        An adapter is saved by PEFT, and the further modules lie beside it in `pytorch_model.bin`.

        Args:
            args: the folder, first of all.
            kwargs: as for transformers, or PEFT. `state_dict` stands in for this model's own;
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
        """Scores tokens by the reward adapter, and goes back to the policy's; the model is in eval mode then.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            kwargs: handed to the model.

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
    """Whether transformers 5 has this process write what all of them save."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _write_whole(state: dict[str, Any], folder: str, name: str) -> None:
    """Writes a pickle under its name only when it is complete."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    # Every process may be asked to save.
    own = f"{path}.{os.getpid()}.tmp"
    torch.save(state, own)
    os.replace(own, path)


def create_reference_model(
    model: PreTrainedModelWrapper, num_shared_layers: int | None = None, pattern: str | None = None
) -> PreTrainedModelWrapper:
    """Copies a model, so that the policy can be held against what it was.

    With `num_shared_layers` the layers below stay equal in both, since they are frozen in the policy.

    Args:
        model: the policy.
        num_shared_layers: number of layers, from the first one on, that are frozen in `model`; what stands
            before them, as embeddings, is frozen with them.
        pattern: how layers are named, with `{layer}` for the number; found by itself for known models.

    Returns:
        The copy in eval mode; what the two do not share has no gradients in it.

    Raises:
        ValueError: DeepSpeed's ZeRO 3 has split the weights, or no known pattern fits.
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
    """Returns how many parameters, in the order of the model, stand before layer `num_shared_layers`."""
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
