"""Writes the folders under `golden/saved` by TRL 0.7.11; run it in the environment of `record.py`."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

FOLDER = Path(__file__).with_name("golden") / "saved"
FORMATS = {
    "plain": {},
    "pickled": {"safe_serialization": False},
    "sharded": {"max_shard_size": "1KB"},
    "pickled_shards": {"safe_serialization": False, "max_shard_size": "1KB"},
}


def main() -> None:
    """Write each format, and an adapter, all with the head that `expected.json` tells."""
    import peft
    import torch
    import transformers
    from trl import AutoModelForCausalLMWithValueHead

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(transformers.GPT2LMHeadModel(config))
    for name, options in FORMATS.items():
        model.save_pretrained(FOLDER / name, **options)
    head = model.v_head.state_dict()
    base = str(FOLDER / "plain")
    lora = peft.LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    adapted = AutoModelForCausalLMWithValueHead.from_pretrained(base, peft_config=lora)
    adapted.v_head.load_state_dict(head)
    for weight in adapted.pretrained_model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight)
    os.makedirs(FOLDER / "adapter", exist_ok=True)
    adapted.save_pretrained(str(FOLDER / "adapter"))
    tokens = torch.arange(6).view(1, 6)
    expected = {
        "tokens": tokens.tolist(),
        "values": model.eval()(tokens)[2].tolist(),
        "values_of_adapter": adapted.eval()(tokens)[2].tolist(),
        "head": head["summary.weight"].tolist(),
        "bias": head["summary.bias"].tolist(),
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    for left in FOLDER.glob("*/generation_config.json"):
        left.unlink()
    os.remove(FOLDER / "adapter" / "README.md")
    # The path of this machine: tests put that of theirs in its place.
    config_file = FOLDER / "adapter" / "adapter_config.json"
    told = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**told, "base_model_name_or_path": "plain"}, indent=1) + "\n")


if __name__ == "__main__":
    # TRL's wheel brings a package named `tests`.
    sys.modules["tests"] = types.ModuleType("tests")
    main()
