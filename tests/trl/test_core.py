from __future__ import annotations

import gc
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compat.trl import core
from compat.trl.core import PPODecorators, randn_tensor


def test_log_probabilities_and_entropy_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[[0.5, -1.0, 2.0], [3.0, 0.0, 0.0]]])
    labels = torch.tensor([[2, 1]])
    parts = [[math.exp(each) for each in row] for row in logits[0].tolist()]
    shares = [[each / sum(row) for each in row] for row in parts]
    found = core.logprobs_from_logits(logits, labels)
    assert found[0].tolist() == pytest.approx([math.log(shares[0][2]), math.log(shares[1][1])])
    entropies = [-sum(share * math.log(share) for share in row) for row in shares]
    assert core.entropy_from_logits(logits)[0].tolist() == pytest.approx(entropies)


def test_masked_moments_are_those_of_what_is_marked() -> None:
    values = [1.0, 5.0, -2.0, 4.0]
    kept = [5.0, -2.0, 4.0]
    mask = torch.tensor([0, 1, 1, 1])
    mean = sum(kept) / 3
    var = sum((each - mean) ** 2 for each in kept)
    tensor = torch.tensor(values)
    assert core.masked_mean(tensor, mask).item() == pytest.approx(mean)
    assert core.masked_var(tensor, mask).item() == pytest.approx(var / 2)
    assert core.masked_var(tensor, mask, unbiased=False).item() == pytest.approx(var / 3)
    whitened = [(each - mean) / math.sqrt(var / 2 + 1e-8) for each in values]
    assert core.masked_whiten(tensor, mask).tolist() == pytest.approx(whitened)
    assert core.masked_whiten(tensor, mask, shift_mean=False).tolist() == pytest.approx(
        [each + mean for each in whitened]
    )
    assert core.whiten(tensor[1:]).tolist() == pytest.approx(whitened[1:])


def test_a_variance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sum of the mask is zero.*`mini_batch_size`"):
        core.masked_var(torch.ones(3), torch.zeros(3))


def test_a_key_with_the_separator_is_refused() -> None:
    with pytest.raises(ValueError, match="separator '/' not allowed to be in key 'a/b'"):
        core.flatten_dict({"c": {"a/b": 1}})
    assert core.flatten_dict({"c": {"a/b": 1}}, sep=".") == {"c.a/b": 1}


def test_generators_are_seeded_alike() -> None:
    def draw() -> tuple[float, float, float]:
        core.set_seed(4)
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002, S311

    assert draw() == draw()


def test_lengths_stay_below_the_largest() -> None:
    sampler = core.LengthSampler(2, 5)
    assert {int(sampler()) for _ in range(100)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("is_wanted", "is_there", "emptied"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_a_cache_is_emptied_where_there_is_one(
    is_wanted: bool, is_there: bool, emptied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    device = SimpleNamespace(is_available=lambda: is_there, empty_cache=lambda: calls.append("emptied"))
    monkeypatch.setattr(core, "_device_module", lambda: device)
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collected"))
    monkeypatch.setattr(PPODecorators, "optimize_device_cache", is_wanted)

    @PPODecorators.empty_device_cache()
    def work() -> str:
        calls.append("work")
        return "done"

    assert work() == "done"
    assert calls == ["work", *["collected", "emptied", "collected"] * emptied]


def test_noise_of_the_cpu_is_moved_and_told_of() -> None:
    with pytest.warns(UserWarning, match="The passed generator was created on 'cpu'"):
        noise = randn_tensor((2, 3), torch.Generator().manual_seed(1), torch.device("meta"))
    assert noise.device.type == "meta"
    assert noise.shape == (2, 3)


def test_a_generator_of_a_gpu_draws_for_no_other_device() -> None:
    generator = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="Cannot generate a cpu tensor from a generator of type cuda"):
        randn_tensor((2, 3), [generator], torch.device("cpu"))


def test_each_generator_draws_an_entry() -> None:
    both = randn_tensor([2, 3], [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for row, seed in zip(both, (1, 2), strict=True):
        assert torch.equal(row, torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))[0])


def test_filtering_is_what_transformers_had() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    kept = core.top_k_top_p_filtering(logits, top_k=2)
    assert kept.tolist() == [[-float("inf"), 3.0, 2.0, -float("inf")]]
    kept = core.top_k_top_p_filtering(logits, top_p=0.5, filter_value=-1.0)
    assert kept.tolist() == [[-1.0, 3.0, -1.0, -1.0]]
    assert torch.equal(core.top_k_top_p_filtering(logits), logits)
