"""Teaches a small GPT-2 to sum up a function: the loss is that of the summary alone, not of the code before.

A script as they were written for TRL 0.7, with `DataCollatorForCompletionOnlyLM`. The text is real: the
functions of Python's own standard library, and the first sentences of their docstrings. What is held out are
whole modules.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
from pathlib import Path

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from compat import TrainingArguments
from compat.trl import DataCollatorForCompletionOnlyLM, SFTTrainer

END, PAD = "<end>", "<pad>"
RESPONSE = "### Summary:"
VOCABULARY = 2048
CONTEXT = 128
NEW_TOKENS = 24
HELD_OUT = 10  # one module in so many


def read_functions() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns what to train on and what is held out: the code of functions and their summaries."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if not is_apart(file.relative_to(library))]
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for index, file in enumerate(files):
        parts[index % HELD_OUT == 0].extend(functions_of(file.read_text(encoding="utf-8")))
    return parts


def is_apart(file: Path) -> bool:
    """Whether a file is no part of the library itself."""
    return bool({"site-packages", "test", "tests", "lib2to3", "pydoc_data", "idlelib"} & {*file.parts})


def functions_of(source: str) -> list[dict[str, str]]:
    """Returns the documented functions of a module: their code without the docstring, and its summary."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not (said := ast.get_docstring(node)):
            continue
        summary = " ".join(re.split(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z])", said)[0].split())
        node.body = node.body[1:] or [ast.Pass()]
        found.append({"code": ast.unparse(node)[:250], "summary": summary})
    return found


def in_one(rows: dict[str, list[str]]) -> list[str]:
    """Returns the texts of a batch of rows: code, the response's template, summary."""
    return [
        f"{code}\n{RESPONSE} {summary}{END}"
        for code, summary in zip(rows["code"], rows["summary"], strict=True)
    ]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer whose vocabulary is learnt from the text."""
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


def sum_up(code: str, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the likeliest summary of a function."""
    # What does not fit is left out at the code's beginning.
    prompt = torch.tensor([tokenizer.encode(f"{code}\n{RESPONSE}")[NEW_TOKENS - CONTEXT :]])
    ids = model.eval().generate(prompt.to(model.device), max_new_tokens=NEW_TOKENS, do_sample=False)
    return tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def draw(history: list[dict[str, float]], path: Path) -> None:
    """Saves a picture of the loss."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for key, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
        points = [(row["step"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axes.set(xlabel="update step", ylabel="loss per token of a summary (nats)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains the model, and tells what it has learnt."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/completions"))
    parser.add_argument("--max_steps", type=int, default=250)
    parser.add_argument(
        "--samples", type=int, help="train on so many functions, and hold out as many at most"
    )
    options = parser.parse_args()
    set_seed(42)
    functions, held_out = (part[: options.samples] for part in read_functions())
    data, measured = Dataset.from_list(functions), Dataset.from_list(held_out)
    tokenizer = build_tokenizer(in_one(data[:]))
    # Its tokens as they stand in a text, after a line's end.
    template = tokenizer.encode(f"\n{RESPONSE}", add_special_tokens=False)
    trainer = SFTTrainer(
        build_model(tokenizer),
        TrainingArguments(
            str(options.output_dir),
            max_steps=options.max_steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=max(options.max_steps // 5, 1),
            eval_on_start=True,
            logging_steps=max(options.max_steps // 40, 1),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data,
        eval_dataset=measured,
        tokenizer=tokenizer,
        formatting_func=in_one,
        data_collator=DataCollatorForCompletionOnlyLM(template, tokenizer=tokenizer),
        max_seq_length=CONTEXT,
    )
    trainer.train()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    history = trainer.state.log_history
    picture = options.output_dir / "training.png"
    draw(history, picture)
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    for function in held_out[:3]:
        print(f"\n{function['code'].splitlines()[0]}")
        print(f"    its summary: {function['summary']}")
        print(f"    the model's: {sum_up(function['code'], trainer.model, tokenizer)}")
    print(f"\nfunctions                 {len(functions)}, held out {len(held_out)}")
    print(f"loss, held out            {losses[0]:8.3f} → {losses[-1]:.3f} nats per token of a summary")
    print(f"picture                   {picture}")


if __name__ == "__main__":
    main()
