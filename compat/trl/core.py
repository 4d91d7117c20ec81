"""Helper functions of TRL's trainers, on tensors and on dicts of statistics.

Mirrors `trl/core.py` of TRL 0.7.11. Sums and means are taken in the same order as there, so that figures
are equal to the bit.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import log_softmax, pad, softmax
from torch.nn.utils.rnn import pad_sequence

from compat.trl.import_utils import is_npu_available, is_xpu_available
from compat.upstream.removed_names import top_k_top_p_filtering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

WANDB_PADDING = -1
"""The padding value of rows of unequal length when statistics are stacked."""

_EPSILON = 1e-8


def flatten_dict(nested: dict[str, Any], sep: str = "/") -> dict[str, Any]:
    """Return one flat dict whose keys are the paths through `nested`, joined by `sep`.

    Raises:
        ValueError: a key contains `sep`, so that paths could no longer be told apart.
    """
    flat = {}
    for key, value in nested.items():
        if sep in key:
            msg = (
                f"separator '{sep}' not allowed to be in key '{key}': two paths could become one. "
                "Rename the key, or choose another `sep`."
            )
            raise ValueError(msg)
        if isinstance(value, Mapping):
            below = flatten_dict(value, sep)  # type: ignore[arg-type]
            flat.update({f"{key}{sep}{path}": leaf for path, leaf in below.items()})
        else:
            flat[key] = value
    return flat


def convert_to_scalar(stats: dict[str, Any]) -> dict[str, Any]:
    """Convert tensors and arrays of shape () or (1,) to numbers; leave all other values unchanged."""
    return {
        key: value.item()
        if isinstance(value, torch.Tensor | np.ndarray) and tuple(value.shape) in ((), (1,))
        else value
        for key, value in stats.items()
    }


def stack_dicts(stats_dicts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack tensors key by key: (dicts, longest), each flattened and padded with `WANDB_PADDING`."""
    return {
        key: pad_sequence(
            [torch.flatten(stats[key]) for stats in stats_dicts],
            batch_first=True,
            padding_value=WANDB_PADDING,
        )
        for key in stats_dicts[0]
    }


def add_suffix(input_dict: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Return the dict with `suffix` appended to each key."""
    return {f"{key}{suffix}": value for key, value in input_dict.items()}


def pad_to_size(tensor: torch.Tensor, size: int, dim: int = 1, padding: int = 50256) -> torch.Tensor:
    """Pad the last dimension on the right until dimension `dim` has `size` entries.

    As in TRL, the last dimension is padded, whatever `dim` is. A `size` below the current one truncates it.
    """
    missing = size - tensor.shape[dim]
    return pad(tensor, (0, missing), "constant", padding) if missing else tensor


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor, gather: bool = True) -> torch.Tensor:
    """Return the log-probabilities of `labels`, (batch, length), under logits (batch, length, vocab).

    With `gather=False`, return those of the whole vocabulary: (batch, length, vocab).
    """
    logprobs = log_softmax(logits, dim=2)
    return logprobs.gather(2, labels.unsqueeze(2)).squeeze(-1) if gather else logprobs


def _whitened(
    values: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *, shift_mean: bool
) -> torch.Tensor:
    centred = (values - mean) * torch.rsqrt(var + _EPSILON)
    return centred if shift_mean else centred + mean


def whiten(values: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Scale values to unit (unbiased) variance, and to zero mean unless `shift_mean` is False."""
    return _whitened(values, values.mean(), values.var(), shift_mean=shift_mean)


def masked_mean(values: Any, mask: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """Return the mean of the values whose mask is 1, overall or along `axis`; nan if there are none.

    Values and mask are tensors or arrays.
    """
    if axis is None:
        return (values * mask).sum() / mask.sum()
    # The argument has this name in both torch and numpy.
    return (values * mask).sum(axis=axis) / mask.sum(axis=axis)


def masked_var(values: torch.Tensor, mask: torch.Tensor, unbiased: bool = True) -> torch.Tensor:
    """Return the variance of the values whose mask is 1; the unbiased variance of a single value is nan.

    Raises:
        ValueError: the mask is all zero, and the unbiased variance was requested.
    """
    variance: torch.Tensor = masked_mean((values - masked_mean(values, mask)) ** 2, mask)
    if not unbiased:
        return variance
    count = mask.sum()
    if count == 0:
        msg = (
            "The sum of the mask is zero, so that there is no variance to take; it can happen when "
            "`mini_batch_size=1`. Try a larger `mini_batch_size` or `gradient_accumulation_steps`."
        )
        raise ValueError(msg)
    return variance * (count / (count - 1))


def masked_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Whiten all values with the mean and the variance of those whose mask is 1; see `whiten`."""
    return _whitened(values, masked_mean(values, mask), masked_var(values, mask), shift_mean=shift_mean)


def clip_by_value(x: torch.Tensor, tensor_min: torch.Tensor, tensor_max: torch.Tensor) -> torch.Tensor:
    """Clip each entry of `x` between the entries of two tensors of a shape that broadcasts to its own."""
    return torch.max(torch.min(x, tensor_max), tensor_min)


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy, in nats, of the distribution over the last dimension of `logits`."""
    return torch.logsumexp(logits, dim=-1) - (softmax(logits, dim=-1) * logits).sum(dim=-1)


def average_torch_dicts(list_of_dicts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean over the dicts, key by key; shapes do not change."""
    return {
        key: torch.stack([entries[key] for entries in list_of_dicts]).mean(dim=0) for key in list_of_dicts[0]
    }


def stats_to_np(stats_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert tensors to arrays (bfloat16, which numpy lacks, to float32) and scalars to floats."""
    arrays = {}
    for key, value in stats_dict.items():
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu()
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        else:
            array = value
        arrays[key] = float(array) if np.isscalar(array) else array  # type: ignore[arg-type]
    return arrays


def respond_to_batch(
    model: nn.Module, queries: torch.Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Sample `txt_len` tokens after each query: (batch, length) to (batch, `txt_len`).

    Each step calls `torch.multinomial` once for the whole batch. No cache is used.
    """
    tokens = queries
    for _ in range(txt_len):
        scores = top_k_top_p_filtering(model(tokens)[0][:, -1, :], top_k, top_p)
        tokens = torch.cat([tokens, torch.multinomial(softmax(scores, dim=-1), num_samples=1)], dim=-1)
    return tokens[:, -txt_len:]


def set_seed(seed: int) -> None:
    """Seed `random`, numpy and torch, on the CPU and on every device of the available kind."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 the purpose is to seed the global generator
    torch.manual_seed(seed)
    _device_module().manual_seed_all(seed)


def _device_module() -> Any:
    if is_xpu_available():
        return torch.xpu
    if is_npu_available():
        return torch.npu  # type: ignore[attr-defined]
    return torch.cuda


class LengthSampler:
    """Draws a length from `min_value` (inclusive) to `max_value` (exclusive) with numpy's generator.

    Args:
        min_value: the smallest number of tokens.
        max_value: one more than the largest number of tokens.
    """

    def __init__(self, min_value: int, max_value: int) -> None:
        self.values = list(range(min_value, max_value))

    def __call__(self) -> int:
        """Return one length."""
        drawn: int = np.random.choice(self.values)  # noqa: NPY002 as in `set_seed`
        return drawn


class PPODecorators:
    """Decorators of PPO's methods.

    Attributes:
        optimize_device_cache: whether to release cached memory to the device after each wrapped call.
    """

    optimize_device_cache = False

    @classmethod
    @contextmanager
    def empty_device_cache(cls) -> Iterator[None]:
        """Empty the device's cache after the block or function, if `optimize_device_cache` is set."""
        yield
        device = _device_module()
        if cls.optimize_device_cache and device.is_available():
            gc.collect()
            device.empty_cache()
            gc.collect()


def randn_tensor(
    shape: Sequence[int],
    generator: list[torch.Generator] | torch.Generator | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Draw normal noise on `device`; with a list of generators, each draws one entry of the batch.

    Noise from a CPU generator is drawn on the CPU and moved, so that it is the same on every device.

    Raises:
        ValueError: a GPU generator was given for another kind of device.
    """
    target = torch.device(device or "cpu")
    generators = generator if isinstance(generator, list) else [generator]
    source = target if generators[0] is None else _drawing_device(generators[0], target)
    options: dict[str, Any] = {"device": source, "dtype": dtype, "layout": layout or torch.strided}
    if len(generators) == 1:
        return torch.randn(tuple(shape), generator=generators[0], **options).to(target)
    entry = (1, *shape[1:])
    drawn = [torch.randn(entry, generator=generators[place], **options) for place in range(shape[0])]
    return torch.cat(drawn).to(target)


def _drawing_device(generator: torch.Generator, target: torch.device) -> torch.device:
    """Return the device on which `generator` can draw noise for `target`."""
    kind = generator.device.type
    if kind == target.type or kind not in ("cpu", "cuda"):
        return target
    if kind == "cuda":
        msg = (
            f"Cannot generate a {target} tensor from a generator of type {kind}. "
            f"Make the generator with `torch.Generator('{target.type}')` or on the CPU."
        )
        raise ValueError(msg)
    if target.type != "mps":
        warnings.warn(
            f"The passed generator was created on 'cpu' even though a tensor on {target} was expected. "
            f"The noise is drawn on 'cpu' and then moved to {target}; a generator that was created on "
            f"{target} would be faster, and draw other numbers.",
            stacklevel=3,
        )
    return generator.device
