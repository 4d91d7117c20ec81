"""Runs of `SFTTrainer`, and what it makes of datasets."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any
from unittest import mock

import datasets

from tests.trl import runs
from tests.trl.setups import parts

CHATS = [
    [{"role": "user", "content": "how is the soup?"}, {"role": "assistant", "content": "warm and good"}],
    [{"role": "user", "content": "how is the film?"}, {"role": "assistant", "content": "a bore"}],
] * 3

TEMPLATE = "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }} {% endfor %}"


def _rows() -> Any:
    return datasets.Dataset.from_dict({"text": runs.TEXTS})


def _run(library: Any, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder),
    ):
        warnings.simplefilter("ignore")
        runs.seed()
        trainer = library("trainer").SFTTrainer(
            options.pop("model", None) or parts.causal(),
            runs.arguments(library, folder, **given),
            **{
                "train_dataset": _rows(),
                "eval_dataset": _rows().select(range(5)),
                "tokenizer": parts.tokenizer(),
                "max_seq_length": 12,
                **options,
            },
        )
        output = trainer.train()
        trainer.evaluate()
        sized = trainer.train_dataset if isinstance(trainer.train_dataset, datasets.Dataset) else ()
        ids = {f"ids.{place}": list(row["input_ids"]) for place, row in enumerate(sized)}
        return {**runs.outcome(trainer, output), **ids, "tags": sorted(trainer.model.model_tags or [])}


def accumulated_and_shuffled(library: Any) -> dict[str, Any]:
    given = {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_grad_norm": 0.5}
    return _run(library, given, dataset_text_field="text")


def evaluated_in_between(library: Any) -> dict[str, Any]:
    given = {"evaluation_strategy": "steps", "eval_steps": 4, "num_train_epochs": 2, "warmup_steps": 3}
    return _run(library, given, formatting_func=lambda rows: [f"say: {text}" for text in rows["text"]])


def window_beyond_an_epoch(library: Any) -> dict[str, Any]:
    given = {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "evaluation_strategy": "epoch"}
    return _run(library, given, train_dataset=_rows().select(range(10)), dataset_text_field="text")


def window_of_more_than_an_epoch(library: Any) -> dict[str, Any]:
    given = {"gradient_accumulation_steps": 4, "max_steps": 5}
    return _run(library, given, train_dataset=_rows().select(range(5)), dataset_text_field="text")


def stream(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    rows = [{"text": text} for text in runs.TEXTS]
    train, evaluation = (
        library("trainer").ConstantLengthDataset(tokenizer, some, "text", seq_length=8, num_of_sequences=size)
        for some, size in ((rows, 4), (rows[:5], 99))
    )
    options = {"train_dataset": train, "eval_dataset": evaluation, "packing": True}
    found = {}
    for name, given in (
        ("steps", {"max_steps": 7}),
        ("epochs", {"num_train_epochs": 2, "gradient_accumulation_steps": 4}),
    ):
        outcome = _run(library, given, **options)
        found |= {f"{name}.{key}": value for key, value in outcome.items() if not key.startswith("ids")}
        found |= {f"{name}.infinite": train.infinite, f"{name}.read": train.current_size}
    return found


def packed(library: Any) -> dict[str, Any]:
    given = {"num_train_epochs": 2}
    return _run(library, given, dataset_text_field="text", packing=True, num_of_sequences=2)


def packed_for_some_steps(library: Any) -> dict[str, Any]:
    return _run(
        library,
        {"max_steps": 3},
        formatting_func=lambda row: f"<{row['text']}>",
        packing=True,
        dataset_kwargs={"append_concat_token": False, "add_special_tokens": False},
    )


def with_noise(library: Any) -> dict[str, Any]:
    found = _run(library, {"max_steps": 4}, dataset_text_field="text", neftune_noise_alpha=5)
    return {name: value for name, value in found.items() if not name.startswith("ids")}


def with_completions_only(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    collator = library("trainer").DataCollatorForCompletionOnlyLM(" ### Assistant:", tokenizer=tokenizer)
    rows = _rows().select([8, 9, 8, 9])
    return _run(
        library,
        {"max_steps": 3},
        train_dataset=rows,
        eval_dataset=rows,
        dataset_text_field="text",
        data_collator=collator,
        max_seq_length=40,
    )


def chats(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = datasets.Dataset.from_dict({"messages": CHATS})
    return _run(
        library,
        {"max_steps": 2, "per_device_train_batch_size": 3},
        train_dataset=rows,
        eval_dataset=rows,
        tokenizer=tokenizer,
        packing=True,
    )


def instructions(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = datasets.Dataset.from_dict({"prompt": runs.TEXTS[:4], "completion": runs.TEXTS[4:8]})
    return _run(
        library,
        {"max_steps": 2},
        train_dataset=rows,
        eval_dataset=rows,
        tokenizer=tokenizer,
        max_seq_length=30,
    )


def adapted(library: Any) -> dict[str, Any]:
    import peft
    import torch

    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    runs.seed()
    model = peft.get_peft_model(parts.causal(), config)
    draws = torch.Generator().manual_seed(1)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            weights.data = torch.randn(weights.shape, generator=draws) * 0.1
    given = {"num_train_epochs": 1, "gradient_checkpointing": True}
    given["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return _run(library, given, model=model, peft_config=config, dataset_text_field="text")
