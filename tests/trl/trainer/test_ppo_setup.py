from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from compat.trl.trainer import ppo_setup
from compat.trl.trainer.utils import AdaptiveKLController, FixedKLController


def test_a_controller_of_each_kind():
    options = {"init_kl_coef": 0.2, "target": 6, "horizon": 1000}
    adaptive = ppo_setup.kl_controller(SimpleNamespace(adap_kl_ctrl=True, **options))
    assert isinstance(adaptive, AdaptiveKLController)
    assert (adaptive.value, adaptive.target, adaptive.horizon) == (0.2, 6, 1000)
    fixed = ppo_setup.kl_controller(SimpleNamespace(adap_kl_ctrl=False, **options))
    assert isinstance(fixed, FixedKLController)


def test_a_given_reference_shares_no_layers():
    model = torch.nn.Linear(1, 1)
    with pytest.warns(UserWarning, match="`num_shared_layers` is ignored"):
        assert ppo_setup.reference_model(model, None, 2, is_peft_model=False) is model
    assert ppo_setup.reference_model(None, model, None, is_peft_model=True) is None


def test_inputs_of_a_model_on_several_devices_go_to_the_first():
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    assert ppo_setup.input_device(SimpleNamespace(), accelerator) == torch.device("cpu")
    spread = SimpleNamespace(is_sequential_parallel=True)
    assert ppo_setup.input_device(spread, accelerator) == torch.device("cuda:0")


def test_an_adapter_is_disabled_for_the_reference():
    assert ppo_setup.adapter_context(SimpleNamespace(is_peft_model=False)) is contextlib.nullcontext
    disable = contextlib.nullcontext
    model = SimpleNamespace(is_peft_model=True, pretrained_model=SimpleNamespace(disable_adapter=disable))
    assert ppo_setup.adapter_context(model) is disable
