"""Prepares what the scripts train: real sentences, and small models that are made from a configuration."""

from __future__ import annotations

import runpy
from pathlib import Path

from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

SENTENCES = Path(__file__).parents[2] / "examples" / "sentences.py"
"""It writes `train.csv`, `validation.csv` and `tiny-bert`, which classifies."""

ENDS = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def main() -> None:
    """Write everything into the current folder."""
    runpy.run_path(str(SENTENCES), run_name="__main__")
    tokenizer = AutoTokenizer.from_pretrained("tiny-bert", **ENDS)
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ENDS}
    of_config = {f"{name}_id": number for name, number in ids.items()}
    vocab_size = len(tokenizer)
    set_seed(0)
    models = {
        "encoder": BertModel(BertConfig(vocab_size=vocab_size, max_position_embeddings=128, **WIDTH)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256, **of_config)
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(vocab_size=vocab_size, max_position_embeddings=256, **WIDTH, **of_config)
        ),
        "t5": T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocab_size,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=ids["pad_token"],
                pad_token_id=ids["pad_token"],
                eos_token_id=ids["eos_token"],
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)


if __name__ == "__main__":
    main()
