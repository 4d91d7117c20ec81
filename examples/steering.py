"""Steers what a small language model says by PPO: towards sentences that a classifier finds positive.

A script as they were written for TRL 0.7: its user generates, scores and calls `PPOTrainer.step`. All three
models learn on the spot, from real text, the docstrings of Python's standard library and of NumPy. A GPT-2
learns to write such sentences. A second one learns to tell positive from negative ones, as the human ratings
of words in VADER's lexicon have them. Then the first is rewarded by what the second thinks of how it goes on
after the first words of sentences, and held near to what it was.
"""

from __future__ import annotations

import argparse
import ast
import logging
import random
import re
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from tqdm import trange
from transformers import (
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from compat import Trainer, TrainingArguments
from compat.trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, SFTTrainer
from compat.trl.core import LengthSampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

END, PAD = "<end>", "<pad>"
VOCABULARY = 2048
CONTEXT = 64
LENGTHS = range(30, 160)  # characters of a sentence
CLEAR = 0.3  # how far from neutral a sentence is that the classifier learns from
NEW_TOKENS = 16


def read_sentences(at_most: int | None) -> list[str]:
    """Returns every sentence of the docstrings, once; no more files are read than it takes."""
    library, numpy = Path(sysconfig.get_path("stdlib")), Path(np.__file__).parent
    found: dict[str, None] = {}
    for file in (
        file
        for folder in (library, numpy)
        for file in sorted(folder.rglob("*.py"))
        if not is_apart(file.relative_to(folder))
    ):
        found.update(dict.fromkeys(sentences_of(file.read_text(encoding="utf-8"))))
        if at_most is not None and len(found) >= at_most:
            break
    return list(found)[:at_most]


def is_apart(file: Path) -> bool:
    """Whether a file is no part of the library itself."""
    return bool({"site-packages", "test", "tests", "lib2to3", "pydoc_data", "idlelib"} & {*file.parts})


def sentences_of(source: str) -> list[str]:
    """Returns the whole sentences in the docstrings of a module."""
    documented = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    parts = (
        " ".join(part.split())
        for node in documented
        for part in re.split(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z])", ast.get_docstring(node) or "")
    )
    return [part for part in parts if len(part) in LENGTHS and part[0].isupper() and part.endswith(".")]


def build_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer whose vocabulary is learnt from the text."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(
        sentences, vocab_size=VOCABULARY, special_tokens=[END, PAD], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner._tokenizer,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        model_max_length=CONTEXT,
    )


def arguments(folder: Path, steps: int, rate: float) -> TrainingArguments:
    """Returns what the language model and the classifier are trained with."""
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        logging_steps=max(steps // 5, 1),
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def teach_to_write(
    sentences: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path, steps: int
) -> None:
    """Trains and saves a GPT-2 of about a million parameters that writes sentences like these."""
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
    trainer = SFTTrainer(
        GPT2LMHeadModel(config),
        arguments(folder, steps, 3e-3),
        train_dataset=Dataset.from_dict({"text": sentences}),
        tokenizer=tokenizer,
        dataset_text_field="text",
        packing=True,
        max_seq_length=CONTEXT,
    )
    trainer.train()
    trainer.save_model()


def teach_to_judge(
    sentences: list[str], tokenizer: PreTrainedTokenizerFast, writer: Path, folder: Path, steps: int
) -> tuple[GPT2ForSequenceClassification, float]:
    """Returns a classifier of positive and negative sentences, and its accuracy on sentences held out."""
    rate = SentimentIntensityAnalyzer().polarity_scores
    rated = [(sentence, rate(sentence)["compound"]) for sentence in sentences]
    negative = [(sentence, 0) for sentence, score in rated if score < -CLEAR]
    positive = [(sentence, 1) for sentence, score in rated if score > CLEAR][: len(negative)]
    both = negative + positive
    random.shuffle(both)
    rows = [{**tokenizer(sentence, truncation=True), "labels": label} for sentence, label in both]
    held_out = len(rows) // 10
    trainer = Trainer(
        GPT2ForSequenceClassification.from_pretrained(writer, num_labels=2),
        arguments(folder, steps, 1e-3),
        train_dataset=rows[held_out:],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda told: {"accuracy": (told.predictions.argmax(-1) == told.label_ids).mean()},
    )
    trainer.train()
    return trainer.model.eval(), trainer.evaluate(rows[:held_out])["eval_accuracy"]


@torch.no_grad()
def judge(
    texts: list[str], classifier: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast
) -> list[torch.Tensor]:
    """Returns by how much the classifier takes each text for a positive one rather than a negative one."""
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(classifier.device)
    negative, positive = classifier(**inputs).logits.unbind(1)
    return list(positive - negative)


def draw(rewards: list[float], divergences: list[float], path: Path) -> None:
    """Saves a picture of the reward, and of how far the model has gone from what it was."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, values, text in zip(
        figure.subplots(1, 2),
        (rewards, divergences),
        ("mean reward of a batch (logits)", "divergence from the start (nats)"),
        strict=True,
    ):
        width = max(len(values) // 10, 1)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(values, alpha=0.35, label="each step")
        axes.plot(np.arange(len(smooth)) + width - 1, smooth, label=f"mean of {width}")
        axes.set(xlabel="PPO step", ylabel=text)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains the three models, one after the other, and shows what has become of the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/steering"))
    parser.add_argument("--sft_steps", type=int, default=600, help="steps in which the model learns to write")
    parser.add_argument("--judge_steps", type=int, default=150, help="steps in which the classifier learns")
    parser.add_argument("--ppo_steps", type=int, default=60, help="steps in which the model is rewarded")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences of a PPO step")
    parser.add_argument("--samples", type=int, help="learn from so many sentences at most")
    options = parser.parse_args()
    logging.getLogger("compat.trl").setLevel(logging.ERROR)  # the value head is new, as it should be
    set_seed(42)
    sentences = read_sentences(options.samples)
    random.shuffle(sentences)
    tokenizer = build_tokenizer(sentences)
    writer = options.output_dir / "writer"
    teach_to_write(sentences, tokenizer, writer, options.sft_steps)
    classifier, accuracy = teach_to_judge(
        sentences, tokenizer, writer, options.output_dir / "judge", options.judge_steps
    )

    count = LengthSampler(2, 6)
    queries = [tokenizer(sentence)["input_ids"][: count()] for sentence in sentences]
    trainer = PPOTrainer(
        PPOConfig(
            learning_rate=3e-4,
            batch_size=options.batch_size,
            mini_batch_size=options.batch_size // 4,
            ppo_epochs=2,
            log_with=None,
        ),
        AutoModelForCausalLMWithValueHead.from_pretrained(str(writer)),
        AutoModelForCausalLMWithValueHead.from_pretrained(str(writer)),
        tokenizer,
        dataset=Dataset.from_dict({"input_ids": queries}).with_format("torch"),
        data_collator=lambda rows: [row["input_ids"] for row in rows],
    )
    classifier.to(trainer.accelerator.device)
    # Nothing that changes probabilities: the divergence would be wrong.
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS}
    how["pad_token_id"] = tokenizer.pad_token_id
    rewards: list[float] = []
    divergences: list[float] = []
    first: list[str] = []
    texts: list[str] = []
    batches = endless(trainer.dataloader)
    for _ in trange(options.ppo_steps, desc="PPO"):
        batch = next(batches)
        responses = trainer.generate(batch, batch_size=len(batch), return_prompt=False, **how)
        texts = [
            tokenizer.decode([*query, *response], skip_special_tokens=True)
            for query, response in zip(batch, responses, strict=True)
        ]
        first = first or texts
        scores = judge(texts, classifier, tokenizer)
        stats = trainer.step(batch, responses, scores)
        rewards.append(float(stats["ppo/mean_scores"]))
        divergences.append(float(stats["objective/kl"]))
    if not trainer.accelerator.is_main_process:
        return
    trainer.save_pretrained(options.output_dir)
    picture = options.output_dir / "training.png"
    draw(rewards, divergences, picture)
    show("before", first)
    show("after", texts)
    tenth = max(len(rewards) // 10, 1)
    print(f"sentences                 {len(sentences)}")
    print(f"classifier, held out      {accuracy:8.1%}")
    print(f"reward                    {np.mean(rewards[:tenth]):8.2f} → {np.mean(rewards[-tenth:]):.2f}")
    print(f"divergence (nats)         {np.mean(divergences[-tenth:]):8.2f}")
    print(f"picture                   {picture}")


def endless(batches: Iterable[list[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    """Yields the batches of a dataloader, again and again."""
    while True:
        yield from batches


def show(when: str, texts: list[str]) -> None:
    """Prints a few texts."""
    print(f"\n{when}:")
    for text in texts[:4]:
        print(f"    {' '.join(text.split())}")
    print()


if __name__ == "__main__":
    main()
