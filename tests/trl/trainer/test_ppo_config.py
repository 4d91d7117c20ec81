from __future__ import annotations

import dataclasses
import json

import pytest

from compat.arguments.parser import HfArgumentParser
from compat.trl import PPOConfig


def test_sizes_that_follow() -> None:
    config = PPOConfig(batch_size=16, mini_batch_size=2, gradient_accumulation_steps=4, steps=50)
    assert (config.backward_batch_size, config.total_ppo_epochs) == (8, 4)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(
        ValueError, match=r"`batch_size` must be a multiple of.*inexact division: 10 / 8 = 1.25"
    ):
        PPOConfig(batch_size=10, mini_batch_size=4, gradient_accumulation_steps=2)


def test_old_names() -> None:
    with pytest.warns(UserWarning, match="forward_batch_size"):
        assert PPOConfig(batch_size=8, forward_batch_size=4).mini_batch_size == 4
    with pytest.warns(UserWarning, match="optimize_cuda_cache"):
        assert PPOConfig(optimize_cuda_cache=True).optimize_device_cache is True


def test_an_estimator_that_there_is_not() -> None:
    with pytest.raises(AssertionError, match=r"kl_penalty='reverse'.*'kl', 'abs', 'mse', 'full'"):
        PPOConfig(kl_penalty="reverse")


def test_as_a_dictionary() -> None:
    told = PPOConfig(tracker_kwargs={"wandb": {"name": "x"}}).to_dict()
    assert told["tracker_kwargs/wandb/name"] == "x"
    assert told["batch_size"] == 128
    assert json.dumps({name: value for name, value in told.items() if name != "lightning"})


def test_on_a_command_line() -> None:
    words = ["--batch_size", "8", "--mini_batch_size", "4", "--kl_penalty", "abs", "--target_kl", "0.5"]
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(words)
    assert (config.batch_size, config.kl_penalty, config.target_kl) == (8, "abs", 0.5)


def test_a_copy_is_as_good() -> None:
    config = PPOConfig(batch_size=8, mini_batch_size=4)
    assert dataclasses.asdict(dataclasses.replace(config, seed=3)) == {
        **dataclasses.asdict(config),
        "seed": 3,
    }
