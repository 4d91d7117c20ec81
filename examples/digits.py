"""Trains a small Vision Transformer from scratch on scikit-learn's handwritten digits.

A plain Hugging Face script: nothing in it knows on which engine it runs. Any field of
``TrainingArguments`` can be given on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import pad
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)

if TYPE_CHECKING:
    from transformers import EvalPrediction

DEFAULTS = {
    "output_dir": "runs/digits",
    "num_train_epochs": 80,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "logging_steps": 40,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "dataloader_pin_memory": torch.cuda.is_available(),
    "report_to": "none",
}


@dataclass
class ModelArguments:
    """The size of the model."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the model."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Number of layers."})
    patch_size: int = field(default=2, metadata={"help": "Side of a patch in pixels; divides 8."})


def load_splits() -> tuple[list[dict], list[dict], list[dict]]:
    """Returns 1,257 digits to train on, 180 to choose the best model by and 360 to judge it by."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    digits = [
        {"pixel_values": image, "label": label} for image, label in zip(pixels, labels.tolist(), strict=True)
    ]
    train, test = train_test_split(digits, test_size=360, random_state=0, stratify=labels)
    kinds = [digit["label"] for digit in train]
    train, validation = train_test_split(train, test_size=180, random_state=0, stratify=kinds)
    return train, validation, test


# How often a digit moves by -1, 0 and 1 pixels.
SHIFTS = torch.tensor([0.15, 0.7, 0.15])


class ShiftedDigits(torch.utils.data.Dataset):
    """Digits that now and then lie one pixel aside: few samples, more to learn from."""

    def __init__(self, digits: list[dict]) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict:
        digit = self.digits[index]
        across, down = torch.multinomial(SHIFTS, 2, replacement=True).tolist()
        framed = pad(digit["pixel_values"], (1, 1, 1, 1), value=-1.0)
        return {**digit, "pixel_values": framed[:, down : down + 8, across : across + 8]}


class DigitViTForImageClassification(ViTForImageClassification):
    """A Vision Transformer that is saved under the names its layers have in memory.

    By default transformers 5 writes the names of older releases. Loading the best model at the end
    then misses most layers and, but for a message, leaves them as the last step made them.
    """

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as the base class does, under other names."""
        super().save_pretrained(*args, save_original_format=False, **kwargs)


def build_model(arguments: ModelArguments) -> DigitViTForImageClassification:
    """Returns an untrained Vision Transformer for 8x8 grey images."""
    config = ViTConfig(
        image_size=8,
        num_channels=1,
        patch_size=arguments.patch_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=2 * arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=4,
        # The usual 0.02 suits a width of 768; so narrow a model would hardly start from it.
        initializer_range=0.15,
        num_labels=10,
    )
    return DigitViTForImageClassification(config)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of digits that are recognised."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def draw(history: list[dict], path: Path) -> None:
    """Saves a picture of loss and accuracy over update steps."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(row["step"], row[key]) for row in history if key in row]
        left.plot(*zip(*points, strict=True), label=label)
    left.set(xlabel="update step", ylabel="loss", yscale="log")
    left.legend(frameon=False)
    points = [(row["step"], row["eval_accuracy"]) for row in history if "eval_accuracy" in row]
    right.plot(*zip(*points, strict=True), color="C1")
    right.set(xlabel="update step", ylabel="accuracy on validation digits", ylim=(None, 1.005))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains, judges the best model on digits it has not seen, and draws how it went."""
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    model_arguments, training_arguments = parser.parse_args_into_dataclasses()
    set_seed(training_arguments.seed)
    train, validation, test = load_splits()
    trainer = Trainer(
        model=build_model(model_arguments),
        args=training_arguments,
        data_collator=default_data_collator,
        train_dataset=ShiftedDigits(train),
        eval_dataset=validation,
        compute_metrics=compute_metrics,
    )
    training = trainer.train().metrics
    trainer.save_model()
    testing = trainer.evaluate(test, metric_key_prefix="test")

    picture = Path(training_arguments.output_dir, "training.png")
    draw(trainer.state.log_history, picture)
    print()
    print(f"train loss         {training['train_loss']:8.4f}")
    print(f"held-out loss      {testing['test_loss']:8.4f}")
    print(f"held-out accuracy  {testing['test_accuracy']:8.4f}")
    print(f"runtime            {training['train_runtime']:8.1f} s")
    print(f"picture            {picture}")


if __name__ == "__main__":
    main()
