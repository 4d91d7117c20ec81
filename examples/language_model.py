"""Trains a small GPT-2 from scratch on the source text of Python's own standard library.

A plain Hugging Face script. Its sequences differ in length
and an update step gathers several batches, so that the loss has to be averaged over the tokens of
all of them: the mean of the batches' means would be another number.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

DEFAULTS = {
    "output_dir": "runs/language_model",
    "max_steps": 250,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "gradient_accumulation_steps": 4,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "weight_decay": 0.1,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "save_strategy": "no",
    "dataloader_pin_memory": torch.cuda.is_available(),
    "report_to": "none",
}
END = "<end>"
VOCABULARY = 1024
CONTEXT = 128
PROMPT = "def "


def read_blocks() -> list[str]:
    """Returns the standard library's modules, cut at their blank lines into some 20,000 blocks."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = [file.read_text(encoding="utf-8") for file in sorted(library.glob("*.py"))]
    blocks = [block.rstrip() for text in texts for block in text.split("\n\n")]
    return [block for block in blocks if block]


def build_tokenizer(blocks: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer whose vocabulary is learnt from the text."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(blocks, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner._tokenizer, pad_token=END, eos_token=END, model_max_length=CONTEXT
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Returns an untrained GPT-2 of about a million parameters."""
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        initializer_range=0.08,  # the usual 0.02 suits a width of 768
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return GPT2LMHeadModel(config)


def draw(history: list[dict], path: Path) -> None:
    """Saves a picture of the loss over update steps."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
        points = [(row["step"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axes.set(xlabel="update step", ylabel="loss per token (nats)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains, draws how the loss fell, and lets the model write a few lines."""
    parser = HfArgumentParser(TrainingArguments)
    parser.set_defaults(**DEFAULTS)
    (arguments,) = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    blocks = read_blocks()
    tokenizer = build_tokenizer(blocks)
    samples = [{"input_ids": ids} for ids in tokenizer(blocks, truncation=True)["input_ids"]]
    held_out, train = samples[::50], [s for i, s in enumerate(samples) if i % 50]
    model = build_model(tokenizer)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    training = trainer.train().metrics
    evaluation = trainer.evaluate()
    trainer.save_model()

    picture = Path(arguments.output_dir, "training.png")
    draw(trainer.state.log_history, picture)
    prompt = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    written = model.generate(**prompt, max_new_tokens=80, do_sample=True, top_p=0.9)
    print(f"\n{tokenizer.decode(written[0], skip_special_tokens=True)}\n")
    print(f"train loss     {training['train_loss']:8.4f}")
    print(f"held-out loss  {evaluation['eval_loss']:8.4f}")
    print(f"runtime        {training['train_runtime']:8.1f} s")
    print(f"picture        {picture}")


if __name__ == "__main__":
    main()
