from __future__ import annotations

import pytest

from compat.trl.models.sd_utils import StateDictType, convert_state_dict, convert_state_dict_to_diffusers

OF_TEXT = {
    "text.q_proj.lora_A.weight": "text.q_proj.lora_linear_layer.down.weight",
    "text.out_proj.lora_B.weight": "text.out_proj.lora_linear_layer.up.weight",
}
OF_IMAGES = {
    "down.attn1.processor.to_k.lora_A.weight": "down.attn1.to_k.lora.down.weight",
    "down.attn1.to_out.0.lora_B.weight": "down.attn1.to_out.0.lora.up.weight",
}
OLDER = {
    "text.to_out_lora.up.weight": "text.out_proj.lora_linear_layer.up.weight",
    "text.to_q_lora.down.weight": "text.q_proj.lora_linear_layer.down.weight",
}


@pytest.mark.parametrize("names", [OF_TEXT, OF_IMAGES, OLDER, OF_TEXT | OF_IMAGES])
def test_names_become_those_of_diffusers(names: dict[str, str]) -> None:
    assert convert_state_dict_to_diffusers(dict.fromkeys(names, 1)) == dict.fromkeys(names.values(), 1)


def test_names_of_diffusers_stay() -> None:
    state = dict.fromkeys(OF_TEXT.values(), 1)
    assert convert_state_dict_to_diffusers(state) is state


def test_an_adapter_may_have_a_name() -> None:
    state = {"attn.to_q.lora_A.policy.weight": 1}
    with pytest.raises(ValueError, match=r"Could not automatically infer state dict type.*`original_type`"):
        convert_state_dict_to_diffusers(state)
    converted = convert_state_dict_to_diffusers(state, adapter_name="policy")
    assert converted == {"attn.to_q.lora.down.policy.weight": 1}
    assert convert_state_dict_to_diffusers(state, StateDictType.PEFT) == converted


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Original type kohya is not supported.*'diffusers_old', 'peft'"):
        convert_state_dict_to_diffusers({}, "kohya")


def test_only_the_first_match_is_replaced() -> None:
    assert convert_state_dict({"a.processor.b": 1}, {"a": "b", "b": "c"}) == {"b.b": 1}
