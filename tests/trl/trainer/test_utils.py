from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from compat.trl.trainer import utils
from compat.trl.trainer.model_config import ModelConfig
from tests.trl.setups import parts


def moments(numbers):
    """Mean, biased variance and unbiased deviation in float64."""
    values = [float(number) for number in numbers]
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, squares / len(values), math.sqrt(squares / (len(values) - 1))


class TestControllers:
    def test_error_is_bounded_on_both_sides(self):
        controller = utils.AdaptiveKLController(0.2, target=6, horizon=1000)
        coefficient = 0.2
        for current, error in ((6.3, 0.05), (60.0, 0.2), (0.0, -0.2)):
            controller.update(current, 10)
            coefficient *= 1 + error * 10 / 1000
            assert controller.value == pytest.approx(coefficient, rel=1e-12)

    def test_a_fixed_one_stays(self):
        controller = utils.FixedKLController(0.3)
        controller.update(99.0, 10)
        assert controller.value == 0.3


class TestStatistics:
    def test_batches_add_up_to_the_whole_stream(self):
        running = utils.RunningMoments(SimpleNamespace(use_distributed=False))
        batches = [torch.randn(size, dtype=torch.float64) * 3 + 1 for size in (5, 2, 9)]
        for batch in batches:
            mean, std = running.update(batch)
            expected = moments(batch)
            assert (mean, std) == (pytest.approx(expected[0]), pytest.approx(expected[2]))
        mean, var, std = moments(torch.cat(batches))
        assert float(running.mean) == pytest.approx(mean, rel=1e-6)
        assert float(running.var) == pytest.approx(var, rel=1e-6)
        assert float(running.std) == pytest.approx(std, rel=1e-6)
        assert running.count == pytest.approx(16)

    def test_several_processes_are_one_stream(self):
        mine, other = torch.randn(6), torch.randn(4)
        mean, var, std = moments(torch.cat([mine, other]))
        # What the other process would add to each sum.
        rest = iter([torch.tensor([other.sum(), 4.0]), ((other - mean) ** 2).sum()])
        accelerator = SimpleNamespace(
            use_distributed=True, device="cpu", reduce=lambda sums: sums + next(rest)
        )
        running = utils.RunningMoments(accelerator)
        assert running.update(mine) == (pytest.approx(mean, rel=1e-5), pytest.approx(std, rel=1e-5))
        assert float(running.var) == pytest.approx(var, rel=1e-5)
        assert float(running.count) == 10

    def test_counts_of_half_precision_are_exact(self):
        accelerator = SimpleNamespace(device="cpu", reduce=lambda sums: sums)
        *_, count = utils.get_global_statistics(accelerator, torch.ones(1001, dtype=torch.bfloat16))
        assert count.item() == 1001

    def test_few_rewards_are_held_against_the_batch(self):
        tracker = utils.PerPromptStatTracker(buffer_size=2, min_count=2)
        rewards = np.array([1.0, 2.0, 6.0])
        advantages = tracker.update(["a", "a", "b"], rewards)
        mean, var, _ = moments(rewards)
        assert advantages[2] == pytest.approx((6 - mean) / (math.sqrt(var) + 1e-6))
        assert advantages[:2] == pytest.approx([-0.5 / (0.5 + 1e-6), 0.5 / (0.5 + 1e-6)])
        tracker.update(["a"], np.array([4.0]))
        assert tracker.get_stats()["a"] == {"mean": 3.0, "std": 1.0, "count": 2}

    def test_ties_count_for_the_first_and_are_told(self):
        scores = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]])
        with pytest.warns(UserWarning, match="1 out of 4 instances"):
            assert utils.compute_accuracy((scores, np.zeros(4))) == {"accuracy": 0.75}


class TestNumbers:
    def test_remainders_are_refused(self):
        assert utils.exact_div(12, 3, "a", "b") == 4
        with pytest.raises(ValueError, match=r"`batch`, a=7, b=2, inexact division: 7 / 2 = 3.5"):
            utils.exact_div(7, 2, "a", "b", "`batch`")


class TestModels:
    def test_noise_has_the_magnitude_of_the_paper(self):
        embedding = nn.Embedding(4, 16)
        embedding.neftune_noise_alpha = 3
        embedding.register_forward_hook(utils.neftune_post_forward_hook)
        ids = torch.zeros(50, 4, dtype=torch.long)
        noise = embedding(ids) - embedding.weight[0]
        bound = 3 / math.sqrt(4 * 16)
        assert 0.98 * bound < noise.abs().max().item() <= bound * (1 + 1e-6)
        assert torch.equal(embedding.eval()(ids)[0, 0], embedding.weight[0])

    # PEFT asks transformers 5.23 by an older name.
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    def test_adapters_and_heads_are_cast_and_norms_are_not(self):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        model = peft.get_peft_model(parts.causal(), config)
        utils.peft_module_casting_to_bf16(model)
        kinds = {name: weights.dtype for name, weights in model.named_parameters()}
        assert {kind for name, kind in kinds.items() if "lora" in name} == {torch.bfloat16}
        assert {kind for name, kind in kinds.items() if "wte" in name} == {torch.bfloat16}
        assert {kind for name, kind in kinds.items() if "ln_" in name} == {torch.float32}
        assert {kind for name, kind in kinds.items() if "mlp" in name} == {torch.float32}

    def test_unsloth_is_a_tag_where_it_has_patched_the_model(self, monkeypatch):
        monkeypatch.setattr(utils, "is_unsloth_available", lambda: True)
        patched = SimpleNamespace(config=SimpleNamespace(unsloth_version="2024.1"))
        assert utils.trl_sanitze_kwargs_for_tagging(patched, ["trl"], {}) == {"tags": ["trl", "unsloth"]}
        plain = SimpleNamespace(config=SimpleNamespace())
        assert utils.trl_sanitze_kwargs_for_tagging(plain, ["trl"], {"tags": "x"}) == {"tags": ["trl", "x"]}

    def test_bits_are_asked_of_bitsandbytes(self, monkeypatch):
        assert utils.get_quantization_config(ModelConfig()) is None
        eight = utils.get_quantization_config(ModelConfig(load_in_8bit=True))
        assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
        monkeypatch.setattr(utils, "BitsAndBytesConfig", lambda **given: given)
        config = ModelConfig(load_in_4bit=True, torch_dtype="bfloat16", use_bnb_nested_quant=True)
        assert utils.get_quantization_config(config) == {
            "load_in_4bit": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        }

    def test_a_quantized_model_goes_to_the_device_of_its_process(self, monkeypatch):
        assert utils.get_kbit_device_map() is None
        monkeypatch.setattr(utils, "PartialState", lambda: SimpleNamespace(local_process_index=3))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert utils.get_kbit_device_map() == {"": 3}
        monkeypatch.setattr(utils, "is_xpu_available", lambda: True)
        assert utils.get_kbit_device_map() == {"": "xpu:3"}

    def test_no_adapter_needs_no_peft(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        assert utils.get_peft_config(ModelConfig()) is None


class TestModelConfig:
    def test_flags_of_a_script(self):
        parser = transformers.HfArgumentParser(ModelConfig)
        flags = ["--model_name_or_path", "gpt2", "--torch_dtype", "bfloat16", "--use_peft"]
        flags += ["--lora_target_modules", "q", "v"]
        (config,) = parser.parse_args_into_dataclasses(flags)
        assert (config.torch_dtype, config.use_peft) == ("bfloat16", True)
        assert config.lora_target_modules == ["q", "v"]
        assert config.to_dict()["lora_alpha"] == 32

    def test_one_number_of_bits_alone(self):
        with pytest.raises(ValueError, match="8 bit and 4 bit precision at the same time"):
            ModelConfig(load_in_8bit=True, load_in_4bit=True)
