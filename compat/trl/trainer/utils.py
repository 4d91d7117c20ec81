"""What TRL 0.7's trainers share: collators, packing, controllers, running statistics, small helpers."""

from __future__ import annotations

import inspect
import math
import random
import re
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers import BitsAndBytesConfig, DataCollatorForLanguageModeling

from compat.trl.import_utils import is_unsloth_available, is_xpu_available

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase

    from compat.trl.trainer.model_config import ModelConfig

__all__ = [
    "AdaptiveKLController",
    "ConstantLengthDataset",
    "DPODataCollatorWithPadding",
    "DataCollatorForCompletionOnlyLM",
    "FixedKLController",
    "PerPromptStatTracker",
    "RewardDataCollatorWithPadding",
    "RunningMoments",
    "compute_accuracy",
    "disable_dropout_in_model",
    "exact_div",
    "get_global_statistics",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "neftune_post_forward_hook",
    "pad_to_length",
    "peft_module_casting_to_bf16",
    "trl_sanitze_kwargs_for_tagging",
]

_KL_ERROR_BOUND = 0.2
_STD_FLOOR = 1e-6


class AdaptiveKLController:
    """A KL coefficient that grows while the policy is too far from its reference, and shrinks while too near.

    Ziegler et al., Fine-Tuning Language Models from Human Preferences (arXiv:1909.08593), section 2.2.

    Args:
        init_kl_coef: the coefficient to begin with.
        target: the divergence to hold, in nats per sequence.
        horizon: over how many samples an error of 1 multiplies the coefficient by 2.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Adjust the coefficient to the divergence that `n_steps` samples have shown.

        Args:
            current: the divergence, a number, or an array or tensor of one.
            n_steps: samples.
        """
        shown = getattr(current, "item", lambda: current)()
        error = float(np.clip(shown / self.target - 1, -_KL_ERROR_BOUND, _KL_ERROR_BOUND))
        self.value *= 1 + error * n_steps / self.horizon


class FixedKLController:
    """A KL coefficient that stays as it is.

    Args:
        kl_coef: the coefficient.
    """

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing; the counterpart of `AdaptiveKLController.update`."""


class DataCollatorForCompletionOnlyLM(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Collate for language modelling, with a loss on what the assistant says and on nothing else.

    Without `instruction_template`, labels begin after the last response template of a sequence. With it, they
    stand between each response template and the next instruction template.

    Args:
        response_template: text, or ids of tokens, that stands before an answer. Ids help where a tokenizer
            encodes the template differently within a text.
        instruction_template: the same for what stands before a question of the user's.
        mlm: handed to `transformers.DataCollatorForLanguageModeling`, as all further arguments are.
        ignore_index: the label of tokens without a loss.
    """

    def __init__(
        self,
        response_template: str | list[int],
        instruction_template: str | list[int] | None = None,
        *args: Any,
        mlm: bool = False,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, mlm=mlm, **kwargs)
        self.instruction_template = instruction_template
        self.instruction_token_ids = self._ids_of(instruction_template)
        self.response_template = response_template
        self.response_token_ids = self._ids_of(response_template)
        self.ignore_index = ignore_index
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if instruction_template and not self.mlm and pad == eos:
            warnings.warn(
                f"The pad_token_id and eos_token_id values of this tokenizer are identical ({eos}): no "
                "label is left for the end of a turn, and a model trained on several turns may go on "
                "asking and answering without end. Set `tokenizer.pad_token` to another token.",
                stacklevel=2,
            )

    def _ids_of(self, template: str | list[int] | None) -> Any:
        if isinstance(template, str):
            return self.tokenizer.encode(template, add_special_tokens=False)
        return template

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Collate examples, and mask the labels (batch, length) of all that is no answer.

        Warns:
            UserWarning: a sequence has no template; all of its labels are masked.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        for labels, tokens in zip(batch["labels"], batch["input_ids"], strict=True):
            if self.instruction_template is None:
                self._keep_last_answer(labels, tokens)
            else:
                self._keep_all_answers(labels, tokens)
        return batch

    def _keep_last_answer(self, labels: torch.Tensor, tokens: torch.Tensor) -> None:
        found = self._find("response", labels, tokens)
        if found:
            labels[: found[-1] + len(self.response_token_ids)] = self.ignore_index

    def _keep_all_answers(self, labels: torch.Tensor, tokens: torch.Tensor) -> None:
        answers = [at + len(self.response_token_ids) for at in self._find("response", labels, tokens)]
        questions = self._find("instruction", labels, tokens)
        if answers and questions and questions[0] > answers[0]:
            questions = [0, *questions]
        # Whatever comes before the first answer, a system's words for one, is no answer either.
        for begin, end in zip([0, *questions[1:]], answers, strict=False):
            labels[begin:end] = self.ignore_index
        if len(questions) > len(answers):
            labels[questions[-1] :] = self.ignore_index

    def _find(self, kind: str, labels: torch.Tensor, tokens: torch.Tensor) -> list[int]:
        """Where templates begin; where there is none, all labels are masked."""
        template, ids = getattr(self, f"{kind}_template"), list(getattr(self, f"{kind}_token_ids"))
        row = labels.tolist()
        found = [i for i, first in enumerate(row) if first == ids[0] and row[i : i + len(ids)] == ids]
        if not found:
            warnings.warn(
                f"Could not find {kind} key `{template}` in the following instance: "
                f"{self.tokenizer.decode(tokens)} This instance will be ignored in loss calculation. If "
                "this happens often, increase the `max_seq_length`, or give the template as ids of tokens.",
                stacklevel=2,
            )
            labels[:] = self.ignore_index
        return found


@dataclass
class RewardDataCollatorWithPadding:
    """Pad pairs of a chosen and a rejected sequence, each side to its longest.

    Args:
        tokenizer: pads.
        padding: as in `tokenizer.pad`, and so are the next three.
        max_length: in tokens.
        pad_to_multiple_of: in tokens.
        return_tensors: kind of the tensors.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate features with `input_ids_*` and `attention_mask_*` of both sides, and maybe a `margin`.

        Returns:
            These four, of shape (batch, length), `return_loss`, and the margins (batch,) where the first
            feature has one.

        Raises:
            ValueError: a feature lacks one of the four.
        """
        sides = ("chosen", "rejected")
        names = [f"{part}_{side}" for side in sides for part in ("input_ids", "attention_mask")]
        missing = sorted({name for feature in features for name in names if name not in feature})
        if missing:
            msg = (
                f"The features should include {', '.join(f'`{name}`' for name in names)}; "
                f"{', '.join(missing)} is missing. Tokenize both sides, or give a `data_collator` of your "
                "own."
            )
            raise ValueError(msg)
        batch: dict[str, Any] = {}
        for side in sides:
            padded = self._pad(features, side)
            batch |= {f"{part}_{side}": padded[part] for part in ("input_ids", "attention_mask")}
        batch["return_loss"] = True
        if "margin" in features[0]:
            batch["margin"] = torch.tensor([feature["margin"] for feature in features], dtype=torch.float)
        return batch

    def _pad(self, features: list[dict[str, Any]], side: str) -> Any:
        return self.tokenizer.pad(
            [{part: one[f"{part}_{side}"] for part in ("input_ids", "attention_mask")} for one in features],
            padding=self.padding,
            # transformers warns of a length that has no effect, which is each one with another padding.
            max_length=self.max_length if self.padding == "max_length" else None,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=self.return_tensors,
        )


@dataclass
class DPODataCollatorWithPadding:
    """Pad tokenized triples of a prompt, a chosen and a rejected answer.

    Prompts of decoder-only models are padded on the left, all else on the right.

    Args:
        pad_token_id: pads what a model reads.
        label_pad_token_id: pads labels.
        is_encoder_decoder: whether the model has an encoder of its own.
    """

    pad_token_id: int = 0
    label_pad_token_id: int = -100
    is_encoder_decoder: bool | None = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate by the endings of the keys.

        Returns:
            Tensors (batch, length) for keys that end in `_input_ids`, `_attention_mask` or `_labels`, tensors
            (batch,) for those in `_logps`, and lists for all others.

        Raises:
            ValueError: there is no padding token, or a key of an encoder-decoder model belongs to no part.
        """
        return {key: self._collate(key, [feature[key] for feature in features]) for key in features[0]}

    def _collate(self, key: str, rows: list[Any]) -> Any:
        if key.endswith(("_input_ids", "_attention_mask", "_labels")):
            fill = self._padding_of(key)
            tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
            if self.is_encoder_decoder or "prompt" not in key:
                return pad_sequence(tensors, batch_first=True, padding_value=fill)
            mirrored = pad_sequence([row.flip(0) for row in tensors], batch_first=True, padding_value=fill)
            return mirrored.flip(1)
        return torch.tensor(rows) if key.endswith("_logps") else rows

    def _padding_of(self, key: str) -> int:
        if key.endswith("_attention_mask"):
            return 0
        if self.is_encoder_decoder:
            is_read = key.startswith("prompt") and key.endswith("_input_ids")
            if not is_read and not key.startswith(("chosen", "rejected")) and "decoder" not in key:
                msg = f"Unexpected key in batch '{key}': it is of no prompt, chosen or rejected. Rename it."
                raise ValueError(msg)
        else:
            is_read = key.endswith("_input_ids")
        if not is_read:
            return self.label_pad_token_id
        if self.pad_token_id is None:
            msg = (
                "Padding is enabled, but the tokenizer is not configured with a padding token. Explicitly "
                "set `tokenizer.pad_token` (e.g. `tokenizer.pad_token = tokenizer.eos_token`) before "
                "calling the trainer."
            )
            raise ValueError(msg)
        return self.pad_token_id


class ConstantLengthDataset(IterableDataset):  # type: ignore[type-arg]
    """Texts, tokenized, strung together and cut into sequences of one length; what is left over is dropped.

    Args:
        tokenizer: tokenizes many texts at once.
        dataset: rows, read in order.
        dataset_text_field: the column with the text, where there is no `formatting_func`.
        formatting_func: makes the text of a row.
        infinite: begin again at the end, with a warning.
        seq_length: tokens of a sequence.
        num_of_sequences: about how many sequences are made at a time.
        chars_per_token: an estimate, by which the number of characters to read at a time is found.
        eos_token_id: stands between texts where the tokenizer has no token for that.
        shuffle: shuffle the sequences that are made at a time, by Python's `random`.
        append_concat_token: whether a token stands between texts.
        add_special_tokens: whether the tokenizer adds its own to each text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Any,
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            warnings.warn(
                f"The passed tokenizer does not have an EOS token: `eos_token_id={eos_token_id}` stands in "
                "for it. Pass the right id if that is another one.",
                stacklevel=2,
            )
        self.concat_token_id = tokenizer.eos_token_id or eos_token_id
        self.dataset = dataset
        self.seq_length = seq_length
        self.infinite = infinite
        self.current_size = 0
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.shuffle = shuffle
        self.append_concat_token = append_concat_token
        self.add_special_tokens = add_special_tokens
        if formatting_func is None:
            self.formatting_func: Callable[[Any], str] = lambda row: row[dataset_text_field]
        else:
            self.formatting_func = formatting_func
            if _positional_parameters(formatting_func) > 1:
                warnings.warn(
                    "The passed formatting_func has more than one argument: it is called with one row and "
                    "nothing else. Give the others defaults, or take them away.",
                    stacklevel=2,
                )

    def __len__(self) -> int:
        """Number of rows, which is not the number of sequences."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `input_ids` and equal `labels`, each (seq_length,)."""
        texts = self._texts()
        while buffer := self._read(texts):
            for sequence in self._pack(buffer):
                self.current_size += 1
                yield {"input_ids": torch.tensor(sequence), "labels": torch.tensor(sequence)}

    def _texts(self) -> Iterator[str]:
        while True:
            is_empty = True
            for row in self.dataset:
                is_empty = False
                yield self.formatting_func(row)
            if not self.infinite or is_empty:
                return
            warnings.warn("The dataset reached end and the iterator is reset to the start.", stacklevel=2)

    def _read(self, texts: Iterator[str]) -> list[str]:
        buffer: list[str] = []
        size = 0
        for text in texts:
            buffer.append(text)
            size += len(text)
            if size >= self.max_buffer_size:
                break
        return buffer

    def _pack(self, buffer: list[str]) -> list[list[int]]:
        tokenized = self.tokenizer(buffer, add_special_tokens=self.add_special_tokens, truncation=False)
        between = [self.concat_token_id] if self.append_concat_token else []
        stream = [token for ids in tokenized["input_ids"] for token in (*ids, *between)]
        whole = len(stream) - len(stream) % self.seq_length
        sequences = [stream[at : at + self.seq_length] for at in range(0, whole, self.seq_length)]
        if self.shuffle:
            random.shuffle(sequences)
        return sequences


def _positional_parameters(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds for one in inspect.signature(function).parameters.values())


class RunningMoments:
    """Mean and deviation of a stream of numbers, over all processes.

    Batches are joined as in Chan et al. (1983): `mean`, `var` (biased), `std` (unbiased) and `count` are
    those of all numbers so far.

    Args:
        accelerator: tells whether there are several processes, and reduces over them.
    """

    def __init__(self, accelerator: Any) -> None:
        self.mean: Any = 0
        self.std: Any = 1
        self.var: Any = 1
        self.count: Any = 1e-24
        self.accelerator = accelerator

    @torch.no_grad()
    def update(self, xs: torch.Tensor) -> tuple[float, float]:
        """Take in a batch.

        Args:
            xs: numbers, in any shape.

        Returns:
            Mean and unbiased deviation of the batch.
        """
        batch = self._moments(xs)
        total = self.count + batch.count
        distance = batch.mean - self.mean
        squares = batch.var * batch.count
        between = distance**2 * self.count * batch.count / total
        self.var = (self.var * self.count + between + squares) / total
        self.mean = self.mean + distance * batch.count / total
        self.std = (self.var * total / (total - 1)).float().sqrt()
        self.count = total
        return batch.mean.item(), (squares / (batch.count - 1)).float().sqrt().item()

    def _moments(self, xs: torch.Tensor) -> _Moments:
        if self.accelerator.use_distributed:
            mean, var, count = get_global_statistics(self.accelerator, xs)
            return _Moments(mean.float(), var.float(), count)
        var, mean = torch.var_mean(xs, unbiased=False)
        return _Moments(mean.float(), var.float(), xs.numel())


class _Moments(NamedTuple):
    mean: torch.Tensor
    var: torch.Tensor
    count: Any


@torch.no_grad()
def get_global_statistics(
    accelerator: Any, xs: torch.Tensor, mask: torch.Tensor | None = None, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find mean, biased variance and count of numbers over all processes.

    Args:
        accelerator: sums over the processes.
        xs: numbers, in any shape; zero wherever `mask` is.
        mask: of the same shape, 1 where a number counts.
        device: where the answers go.

    Returns:
        Three scalars.
    """
    xs = xs.to(accelerator.device)
    weights = torch.ones_like(xs) if mask is None else mask.to(xs.device)
    exact = torch.promote_types(xs.dtype, torch.float32)
    total, count = accelerator.reduce(torch.stack([xs.sum().to(exact), weights.sum(dtype=exact)]))
    mean = total / count
    squares = accelerator.reduce(((xs - mean) ** 2 * weights).sum())
    return mean.to(device), (squares / count).to(device), count.to(device)


def compute_accuracy(eval_pred: tuple[Any, Any]) -> dict[str, float]:
    """Tell how often the chosen side has the higher reward.

    Args:
        eval_pred: rewards (batch, 2), chosen ones first, and labels (batch,), zero where the first is right;
            arrays or tensors.

    Returns:
        `{"accuracy": share}`.

    Warns:
        UserWarning: some pairs have equal rewards; they count for the first.
    """
    predictions, labels = eval_pred
    ties = int((predictions[:, 0] == predictions[:, 1]).sum())
    if ties:
        warnings.warn(
            f"There are {ties} out of {len(predictions)} instances where the predictions for both options "
            "are equal. They count as if the first were preferred, so the accuracy can be misleading.",
            stacklevel=2,
        )
    preferred = np.asarray(predictions.argmax(axis=1))
    return {"accuracy": float(np.mean(preferred == np.asarray(labels)))}


def pad_to_length(tensor: torch.Tensor, length: int, pad_value: float, dim: int = -1) -> torch.Tensor:
    """Pad one dimension at its end; what is long enough stays as it is.

    Args:
        tensor: of any shape.
        length: that `dim` shall have.
        pad_value: to pad with.
        dim: to pad.

    Returns:
        The same tensor, or a longer one.
    """
    missing = length - tensor.size(dim)
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, pad_value * tensor.new_ones(shape)], dim=dim)


def disable_dropout_in_model(model: torch.nn.Module) -> None:
    """Set the probability of every `torch.nn.Dropout` to zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0


def exact_div(a: int, b: int, a_str: str, b_str: str, custom_error_message: str = "") -> int:
    """Divide without a remainder.

    Args:
        a: dividend.
        b: divisor.
        a_str: what `a` is called.
        b_str: what `b` is called.
        custom_error_message: begins the error.

    Returns:
        The quotient.

    Raises:
        ValueError: there is a remainder.
    """
    quotient, remainder = divmod(a, b)
    if remainder:
        msg = f"{custom_error_message}, {a_str}={a}, {b_str}={b}, inexact division: {a} / {b} = {a / b}"
        raise ValueError(msg)
    return quotient


class PerPromptStatTracker:
    """Advantages of rewards against those that the same prompt has had lately.

    Black et al., Training Diffusion Models with Reinforcement Learning (arXiv:2305.13301), section 4.2.

    Args:
        buffer_size: rewards to remember for a prompt.
        min_count: with fewer than these, the whole batch's mean and deviation are taken.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.stats: dict[Any, deque[Any]] = {}

    def update(self, prompts: Sequence[str], rewards: Any) -> np.ndarray:
        """Remember a batch.

        Args:
            prompts: of each sample.
            rewards: of each sample, floats; where they are integers, so are the advantages.

        Returns:
            Advantages (batch,).
        """
        texts, scores = np.array(prompts), np.array(rewards)
        advantages = np.empty_like(scores)
        for prompt in np.unique(texts):
            mine = texts == prompt
            known = self.stats.setdefault(prompt, deque(maxlen=self.buffer_size))
            known.extend(scores[mine])
            base = scores if len(known) < self.min_count else np.array(known)
            advantages[mine] = (scores[mine] - base.mean()) / (base.std() + _STD_FLOOR)
        return advantages

    def get_stats(self) -> dict[Any, dict[str, Any]]:
        """For each prompt, `mean`, `std` and `count` of the rewards that are remembered."""
        return {
            prompt: {"mean": np.mean(known), "std": np.std(known), "count": len(known)}
            for prompt, known in self.stats.items()
        }


def neftune_post_forward_hook(
    module: torch.nn.Module,
    input: Any,  # noqa: A002 (TRL's)
    output: torch.Tensor,
) -> torch.Tensor:
    """Add uniform noise to embeddings while training; a forward hook.

    Jain et al., NEFTune (arXiv:2310.05914): noise of magnitude alpha / sqrt(length * width).

    Args:
        module: an embedding; `module.neftune_noise_alpha` is alpha.
        input: not looked at.
        output: (batch, length, width).

    Returns:
        The same shape.
    """
    if not module.training:
        return output
    bound = float(module.neftune_noise_alpha) / math.sqrt(output.size(1) * output.size(2))  # type: ignore[arg-type]
    return output + torch.empty_like(output).uniform_(-bound, bound)


_ENDS_OF_MODELS = re.compile("lm_head|embed_tokens|wte|wpe")


def peft_module_casting_to_bf16(model: torch.nn.Module) -> None:
    """Cast adapters, and embeddings and heads that are in fp32, to bf16, and norms to fp32, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def wanted(name: str, module: torch.nn.Module) -> torch.dtype | None:
        if isinstance(module, BaseTunerLayer):
            return torch.bfloat16
        if "norm" in name or isinstance(module, torch.nn.LayerNorm):
            return torch.float32
        precision = getattr(getattr(module, "weight", None), "dtype", None)
        return torch.bfloat16 if precision == torch.float32 and _ENDS_OF_MODELS.search(name) else None

    for path, part in model.named_modules():
        precision = wanted(path, part)
        if precision is not None:
            part.to(precision)


def trl_sanitze_kwargs_for_tagging(
    model: Any, tag_names: list[str], kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Add a trainer's tags to what `push_to_hub` is given.

    Args:
        model: tells by its configuration whether Unsloth has patched it, which is a tag too.
        tag_names: the trainer's; grows with what is found.
        kwargs: what is given; `tags` is a list, a text, or missing.

    Returns:
        `kwargs`, with all tags in a list; None where it was None.
    """
    if (
        is_unsloth_available()
        and getattr(getattr(model, "config", None), "unsloth_version", None) is not None
    ):
        tag_names.append("unsloth")
    if kwargs is None:
        return None
    given = kwargs.setdefault("tags", [])
    if isinstance(given, list):
        given.extend(tag_names)
    elif isinstance(given, str):
        tag_names.append(given)
        kwargs["tags"] = tag_names
    return kwargs


def get_quantization_config(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """Make what bitsandbytes needs of a `ModelConfig`; None where it asks for no quantization."""
    if model_config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_config.torch_dtype,
            bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_config.load_in_8bit else None


def get_kbit_device_map() -> dict[str, Any] | None:
    """Put a whole quantized model on this process's device; None on a machine without an accelerator."""
    prefix = "xpu:" if is_xpu_available() else ""
    if not prefix and not torch.cuda.is_available():
        return None
    index = PartialState().local_process_index
    return {"": f"{prefix}{index}" if prefix else index}


def get_peft_config(model_config: ModelConfig) -> LoraConfig | None:
    """Make a LoRA configuration for a causal model of a `ModelConfig`; None where it has no `use_peft`."""
    if not model_config.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=model_config.lora_target_modules,
        modules_to_save=model_config.lora_modules_to_save,
    )
