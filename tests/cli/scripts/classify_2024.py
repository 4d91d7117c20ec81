"""A script as it was written in 2024, against transformers 4.37: nothing here has been brought up to date."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import EvaluationStrategy, get_last_checkpoint
from transformers.utils import check_min_version, send_example_telemetry

check_min_version("4.37.0")

logger = logging.getLogger(__name__)

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "very", "not", "a", "the", "was"]


@dataclass
class ModelArguments:
    hidden_size: int = field(default=8, metadata={"help": "Width of the model."})
    cache_dir: Optional[str] = field(default=None)  # noqa: UP045 (as it was written)


@dataclass
class DataTrainingArguments:
    max_seq_length: int = field(default=6)
    max_train_samples: int = field(default=24)


class WeightedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.get("labels")
        outputs = model(**inputs)
        weights = 1.0 + labels.float()
        losses = transformers.trainer.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
        loss = (losses * weights).mean()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs):
        logs["marked"] = 1
        super().log(logs)


def sentences(count, seed):
    numbers = np.random.RandomState(seed)  # noqa: NPY002 (as it was written)
    texts = [" ".join(numbers.choice(WORDS[2:], 5)) for _ in range(count)]
    return Dataset.from_dict({"text": texts, "label": [int("good" in text) for text in texts]})


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    send_example_telemetry("run_classification", model_args, data_args)

    last_checkpoint = None
    if os.path.isdir(training_args.output_dir) and training_args.do_train:
        last_checkpoint = get_last_checkpoint(training_args.output_dir)
        if last_checkpoint is None and not training_args.overwrite_output_dir:
            raise ValueError(f"Output directory ({training_args.output_dir}) already exists.")
    set_seed(training_args.seed)
    assert training_args.evaluation_strategy == EvaluationStrategy.EPOCH
    assert training_args.no_cuda
    assert training_args.warmup_ratio == 0.25

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_words(),
        pad_token="[PAD]",
        unk_token="[UNK]",  # noqa: S106
    )
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=model_args.hidden_size,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )

    def preprocess(examples):
        return tokenizer(examples["text"], truncation=True, max_length=data_args.max_seq_length)

    train_dataset = sentences(data_args.max_train_samples, 0).map(preprocess, batched=True)
    eval_dataset = sentences(8, 1).map(preprocess, batched=True)

    def compute_metrics(p: EvalPrediction):
        predictions = p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions
        return {"accuracy": float((predictions.argmax(-1) == p.label_ids).mean())}

    trainer = WeightedTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        tokenizer=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[EarlyStoppingCallback(3)],
    )
    train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics = train_result.metrics
    metrics["train_samples"] = len(train_dataset)
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    assert trainer.tokenizer is tokenizer
    trainer.create_model_card(finetuned_from="nothing", tasks="text-classification")


def _words():
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
