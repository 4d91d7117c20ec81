"""Teaches a small GPT-2 to document Python: first any sentence of a docstring (SFT), then its summary (DPO).

A plain TRL script; `compat run examples/preferences.py` has its two trainers run on Lightning. The text is
real: the docstrings of Python's own standard library. In the first stage the model learns to go on after a
signature with a sentence of its docstring. In the second it is shown pairs of sentences, both of which people
have written about the same function, and is to prefer the one that sums it up. What is held out are whole
modules.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sysconfig
from pathlib import Path

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

END, PAD = "<end>", "<pad>"
VOCABULARY = 2048
CONTEXT = 96
LENGTHS = range(20, 160)  # characters of a sentence
HELD_OUT = 10  # one module in so many
PROMPT = "def send_message(self, message, timeout):"


def read_pairs() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns what to train on and what is held out: prompt, summary (chosen) and another sentence."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if not is_apart(file.relative_to(library))]
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for index, file in enumerate(files):
        parts[index % HELD_OUT == 0].extend(pairs_of(file.read_text(encoding="utf-8")))
    return parts


def is_apart(file: Path) -> bool:
    """Whether a file is no part of the library itself."""
    return bool({"site-packages", "test", "tests", "lib2to3", "pydoc_data", "idlelib"} & {*file.parts})


def pairs_of(source: str) -> list[dict[str, str]]:
    """Returns a pair for each documented function of a module whose docstring says more than its summary."""
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = []
    for function in functions:
        summary, *others = [
            " ".join(part.split()) for part in sentences(ast.get_docstring(function) or "")
        ] or [""]
        others = [other for other in others if len(other) in LENGTHS]
        if others and len(summary) in LENGTHS:
            signature = f"def {function.name}({', '.join(a.arg for a in function.args.args)}):"
            found.append({"prompt": signature, "chosen": f" {summary}", "rejected": f" {others[0]}"})
    return found


def sentences(docstring: str) -> list[str]:
    """Cuts a docstring at its blank lines and after its full stops."""
    return [part for part in re.split(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z])", docstring) if part.strip()]


def build_tokenizer(pairs: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer whose vocabulary is learnt from the text."""
    texts = [text for pair in pairs for text in pair.values()]
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END, PAD], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner._tokenizer, pad_token=PAD, eos_token=END, bos_token=END
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Returns an untrained GPT-2 of about a million parameters."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.08,  # the usual 0.02 suits a width of 768
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def write(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns how the model goes on after a signature."""
    prompt = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    torch.manual_seed(0)
    ids = model.eval().generate(**prompt, max_new_tokens=40, do_sample=True, top_k=20)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def draw(sft: list[dict], dpo: list[dict], path: Path) -> None:
    """Saves a picture of the loss of the first stage and the accuracy of the second."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, history, key, text in zip(
        figure.subplots(1, 2),
        (sft, dpo),
        ("loss", "rewards/accuracies"),
        ("SFT: loss per token (nats)", "DPO: summaries preferred"),
        strict=True,
    ):
        for name, label, marker in ((key, "training", None), (f"eval_{key}", "held out", "o")):
            points = [(row["step"], row[name]) for row in history if name in row]
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
        axes.set(xlabel="update step", ylabel=text)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains in two stages, and tells how often the model prefers a summary after the second."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", default="runs/preferences")
    parser.add_argument("--sft_steps", type=int, default=250, help="update steps of the first stage")
    parser.add_argument("--dpo_steps", type=int, default=100, help="update steps of the second stage")
    parser.add_argument("--samples", type=int, help="train on so many pairs, and hold out as many at most")
    options = parser.parse_args()
    set_seed(42)
    pairs, held_out = (part[: options.samples] for part in read_pairs())
    random.shuffle(pairs)
    tokenizer = build_tokenizer(pairs)
    common = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": False,
        "bf16": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "max_length": CONTEXT,
    }
    trainer = SFTTrainer(
        model=build_model(tokenizer),
        args=SFTConfig(
            f"{options.output_dir}/sft",
            max_steps=options.sft_steps,
            eval_steps=max(options.sft_steps // 4, 1),
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            **common,
        ),
        train_dataset=completions(pairs),
        eval_dataset=completions(held_out),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    sft, before = trainer.state.log_history, write(trainer.model, tokenizer)
    # The reference, which the trainer loads for itself, is what the first stage has saved.
    trainer = DPOTrainer(
        model=GPT2LMHeadModel.from_pretrained(f"{options.output_dir}/sft"),
        args=DPOConfig(
            f"{options.output_dir}/dpo",
            max_steps=options.dpo_steps,
            eval_steps=max(options.dpo_steps // 4, 1),
            eval_on_start=True,
            learning_rate=2e-4,
            warmup_steps=10,
            beta=0.1,
            **common,
        ),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    dpo = trainer.state.log_history
    picture = Path(options.output_dir, "training.png")
    draw(sft, dpo, picture)
    last = [row for row in dpo if "eval_loss" in row][-1]
    print(f"\n{PROMPT}\n    after SFT: {before}\n    after DPO: {write(trainer.model, tokenizer)}\n")
    print(f"pairs                     {len(pairs)}, held out {len(held_out)}")
    print(f"SFT loss, held out        {[row['eval_loss'] for row in sft if 'eval_loss' in row][-1]:8.3f}")
    print(f"DPO margin, held out      {last['eval_rewards/margins']:8.3f}")
    print(f"summaries preferred       {last['eval_rewards/accuracies']:8.1%}")
    print(f"picture                   {picture}")


def completions(pairs: list[dict[str, str]]) -> Dataset:
    """Returns every sentence as the completion of its signature."""
    return Dataset.from_list(
        [
            {"prompt": pair["prompt"], "completion": pair[kind]}
            for pair in pairs
            for kind in ("chosen", "rejected")
        ]
    )


if __name__ == "__main__":
    main()
