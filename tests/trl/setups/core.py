"""Functions on tensors and statistics, and what they draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.trl.setups import parts


def tensors(library: Any) -> dict[str, Any]:
    """Means, variances and log-probabilities of random tensors."""
    core = library("core")
    torch.manual_seed(0)
    values, logits = torch.randn(3, 7), 3 * torch.randn(3, 7, 11)
    mask = (torch.rand(3, 7) > 0.3).long()
    labels = torch.randint(0, 11, (3, 7))
    return {
        "logprobs": core.logprobs_from_logits(logits, labels),
        "all_logprobs": core.logprobs_from_logits(logits, labels, gather=False)[0],
        "entropy": core.entropy_from_logits(logits),
        "whitened": core.whiten(values),
        "whitened_in_place": core.whiten(values, shift_mean=False),
        "mean": core.masked_mean(values, mask),
        "means": core.masked_mean(values, mask, axis=1),
        "means_of_arrays": core.masked_mean(values.numpy(), mask.numpy(), axis=1),
        "var": core.masked_var(values, mask),
        "biased_var": core.masked_var(values, mask, unbiased=False),
        "masked_whitened": core.masked_whiten(values, mask),
        "masked_whitened_in_place": core.masked_whiten(values, mask, shift_mean=False),
        "clipped": core.clip_by_value(values, torch.tensor(-0.5), values.abs().mean(0)),
        "longer": core.pad_to_size(labels, 9),
        "shorter": core.pad_to_size(labels, 5, padding=1),
        "of_one_dimension": core.pad_to_size(values[0], 9, dim=0, padding=-1),
    }


def statistics(library: Any) -> dict[str, Any]:
    """Dicts of statistics, flattened, stacked and averaged."""
    core = library("core")
    nested = {"ppo": {"loss": {"policy": 1, "value": 2.5}, "std": torch.tensor(3.0)}, "time": 4}
    flat = core.flatten_dict(nested)
    rows = [{"a": torch.arange(3.0), "b": torch.ones(2, 2)}, {"a": torch.arange(5.0), "b": torch.zeros(1, 2)}]
    stacked = core.stack_dicts(rows)
    mean = core.average_torch_dicts([{"a": torch.arange(3.0)}, {"a": torch.ones(3)}])
    arrays = core.stats_to_np({"half": torch.tensor([0.1], dtype=torch.bfloat16), "one": 1, "row": [1]})
    scalars = core.convert_to_scalar(
        {"none": torch.tensor(2.0), "one": np.array([3.0]), "two": torch.ones(2), "word": "w"}
    )
    return {
        "paths": list(flat),
        "dotted": list(core.flatten_dict(nested, sep=".")),
        "leaves": [float(value) for value in flat.values()],
        "suffixed": list(core.add_suffix(flat, "_after")),
        "stacked_a": stacked["a"],
        "stacked_b": stacked["b"],
        "mean": mean["a"],
        "half": arrays["half"],
        "kinds": [type(value).__name__ for value in arrays.values()],
        "scalars": [type(value).__name__ for value in scalars.values()],
    }


def draws(library: Any) -> dict[str, Any]:
    """Sampled tokens, lengths and noise."""
    core = library("core")
    model = parts.causal().eval()
    queries = torch.arange(10, 18).view(2, 4)
    core.set_seed(3)
    sampler = core.LengthSampler(4, 9)
    lengths = [int(sampler()) for _ in range(6)]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return {
        "lengths": lengths,
        "values": sampler.values,
        "tokens": core.respond_to_batch(model, queries, txt_len=5),
        "of_the_likeliest": core.respond_to_batch(model, queries, txt_len=5, top_k=3),
        "of_the_nucleus": core.respond_to_batch(model, queries, txt_len=5, top_p=0.5),
        "of_both": core.respond_to_batch(model, queries, txt_len=5, top_k=20, top_p=0.7),
        "noise": core.randn_tensor((2, 3)),
        "noise_of_each": core.randn_tensor((2, 3), generator=generators),
        "noise_of_one": core.randn_tensor((2, 3), generator=generators[:1], dtype=torch.float64),
    }
