"""What is saved, which of it is kept, and how a run goes on from it."""

from __future__ import annotations

from functools import partial

from transformers import EarlyStoppingCallback

from tests.parity.bench import Limit, Setup
from tests.parity.parts import callbacks, data, metrics, models, optimizers, scripts
from tests.parity.setups.common import BEST, CLASSES, LORA, NEEDS_5, NOISY, SAVES, STEPS, TEXT, calls, padded

NOTES_BEST = Limit(
    'its state does not say which checkpoint is the best one with `save_strategy="best"`', since="5.4"
)

CHECKPOINTS = (
    Setup("checkpoints/steps", args=SAVES, **NOISY),
    Setup("checkpoints/epoch", args={"save_strategy": "epoch"}, **CLASSES),
    Setup("checkpoints/by-hand", args=SAVES, **CLASSES, script=scripts.save_everything),
    Setup(
        "checkpoints/best",
        args={**STEPS, "save_strategy": "best", "metric_for_best_model": "loss"},
        limit=NOTES_BEST,
    ),
    Setup(
        "checkpoints/best-is-loaded",
        args={
            **STEPS,
            "save_strategy": "best",
            "metric_for_best_model": "loss",
            "load_best_model_at_end": True,
        },
        limit=NOTES_BEST,
    ),
    Setup(
        "checkpoints/best-is-greater",
        **CLASSES,
        args={**STEPS, "save_strategy": "best", "metric_for_best_model": "accuracy"},
        extras=lambda model: {"compute_metrics": metrics.accuracy},
        limit=NOTES_BEST,
    ),
    Setup(
        "checkpoints/not-as-safetensors",
        args={**SAVES, "save_safetensors": False},
        script=scripts.in_turn(scripts.interrupted(5), scripts.resumed()),
        limit=Limit("writes safetensors only", before="5"),
    ),
    Setup("checkpoints/limit-1", args={**SAVES, "save_total_limit": 1}),
    Setup("checkpoints/limit-2", args={**SAVES, "save_total_limit": 2, "save_steps": 2}),
    Setup("checkpoints/load-best", args=BEST),
    Setup("checkpoints/load-best-limit-1", args={**BEST, "save_total_limit": 1}),
    Setup(
        "checkpoints/load-worst-limit-1",
        args={**BEST, "save_total_limit": 1, "greater_is_better": True},
    ),
    Setup(
        "checkpoints/load-worst-limit-2",
        args={**BEST, "save_total_limit": 2, "greater_is_better": True},
    ),
    Setup(
        "checkpoints/load-best-by-epoch",
        **CLASSES,
        args={
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "num_train_epochs": 3,
        },
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "checkpoints/early-stopping",
        args={**BEST, "learning_rate": 0.5},
        extras=calls(EarlyStoppingCallback),
    ),
    Setup(
        "checkpoints/early-stopping-with-patience",
        args={**BEST, "greater_is_better": True, "num_train_epochs": 3},
        extras=calls(partial(EarlyStoppingCallback, 2, 0.01)),
    ),
    Setup("checkpoints/model-only", args={**SAVES, "save_only_model": True}),
    Setup(
        "checkpoints/with-accumulation",
        args={**SAVES, "save_steps": 2, "gradient_accumulation_steps": 3},
    ),
)

RESUME = tuple(
    Setup(f"resume/{name}", script=scripts.in_turn(*parts), **{"args": SAVES, **NOISY, **more})
    for name, parts, more in (
        ("mid-epoch", (scripts.interrupted(5), scripts.resumed(3)), {}),
        ("last", (scripts.interrupted(11), scripts.resumed()), {}),
        (
            "end-of-epoch",
            (scripts.interrupted(9), scripts.resumed(7)),
            {"args": {"save_strategy": "epoch"}},
        ),
        (
            "mid-epoch-with-accumulation",
            (scripts.interrupted(3), scripts.resumed(2, as_of_hf=True)),
            {"args": {**SAVES, "save_steps": 2, "gradient_accumulation_steps": 2}},
        ),
        (
            "mid-epoch-without-skipping",
            (scripts.interrupted(5), scripts.resumed(ignore_data_skip=True)),
            {},
        ),
        (
            "second-epoch-without-skipping",
            (scripts.interrupted(10), scripts.resumed(ignore_data_skip=True)),
            {},
        ),
        (
            "stream",
            (scripts.interrupted(5), scripts.resumed()),
            {"train": data.stream, "args": {**SAVES, "max_steps": 9}},
        ),
        (
            "stream-that-ran-out",
            (scripts.interrupted(7), scripts.resumed(as_of_hf=True)),
            {"train": partial(data.stream, 18), "args": {**SAVES, "max_steps": 9}},
        ),
        (
            "table-streamed",
            (scripts.interrupted(5), scripts.resumed()),
            {"train": data.shuffled_stream, "args": {**SAVES, "max_steps": 9}},
        ),
        (
            "augmented-data",
            (scripts.interrupted(5), scripts.resumed(as_of_hf=True)),
            {"train": data.noisy},
        ),
        (
            "workers",
            (scripts.interrupted(5), scripts.resumed()),
            {"train": data.noisy, "args": {**SAVES, "dataloader_num_workers": 1}},
        ),
        (
            "bert",
            (scripts.interrupted(4), scripts.resumed()),
            CLASSES,
        ),
        (
            "tokens-with-accumulation",
            (scripts.interrupted(2), scripts.resumed(as_of_hf=True)),
            {
                **TEXT,
                "extras": padded,
                "args": {**SAVES, "save_steps": 1, "gradient_accumulation_steps": 2},
            },
        ),
        (
            "twice",
            (
                scripts.interrupted(4),
                scripts.interrupted(10, resume_from_checkpoint=True),
                scripts.resumed(),
            ),
            {},
        ),
        ("in-bf16", (scripts.interrupted(4), scripts.resumed()), {"args": {**SAVES, "bf16": True}}),
        (
            "for-more-epochs",
            (scripts.train, scripts.resumed(as_of_hf=True, num_train_epochs=3)),
            {},
        ),
        (
            "finished-run",
            (scripts.train, scripts.resumed(14)),
            {"args": {"save_strategy": "epoch"}},
        ),
        (
            "without-optimizer",
            (scripts.interrupted(4), scripts.resumed()),
            {"args": {**SAVES, "save_only_model": True}},
        ),
        ("best-model", (scripts.interrupted(8), scripts.resumed()), {"args": BEST}),
        (
            "plateau",
            (scripts.interrupted(8), scripts.resumed()),
            {
                "args": {
                    **BEST,
                    "lr_scheduler_type": "reduce_lr_on_plateau",
                    "lr_scheduler_kwargs": {"patience": 0},
                    "learning_rate": 0.3,
                }
            },
        ),
        (
            "callback-states",
            (scripts.interrupted(5), scripts.resumed()),
            {
                "args": {**SAVES, "restore_callback_states_from_checkpoint": True},
                "extras": calls(callbacks.StepCounter),
            },
        ),
        *(
            (
                f"callback-states-at-{where}",
                # Ours would finish the epoch in which such a checkpoint was saved.
                (scripts.train, scripts.resumed(checkpoint, as_of_hf=True)),
                {"args": {**saves, "restore_callback_states_from_checkpoint": True}},
            )
            for where, checkpoint, saves in (
                ("epoch-end", 7, {"save_strategy": "epoch"}),
                ("last-step-of-epoch", 7, {**SAVES, "save_steps": 7}),
                ("end-of-run", 14, {"save_strategy": "epoch"}),
                ("last-step-of-run", 14, {**SAVES, "save_steps": 7}),
            )
        ),
        (
            "other-batch-size",
            (scripts.interrupted(5), scripts.resumed(per_device_train_batch_size=2)),
            {"limit": NEEDS_5("it goes by the checkpoint's batch size")},
        ),
        (
            "other-logging-and-saving",
            (
                scripts.interrupted(5),
                scripts.resumed(logging_steps=2, save_steps=4, **STEPS),
            ),
            {},
        ),
        ("elsewhere", (scripts.interrupted(5), scripts.resumed_elsewhere), {}),
        (
            "limit-2",
            (scripts.interrupted(8), scripts.resumed()),
            {"args": {**BEST, "save_total_limit": 2, "save_steps": 2, "eval_steps": 2}},
        ),
        (
            "early-stopping",
            (scripts.interrupted(8), scripts.resumed()),
            {
                "args": {
                    **BEST,
                    "greater_is_better": True,
                    "restore_callback_states_from_checkpoint": True,
                },
                "extras": calls(partial(EarlyStoppingCallback, 3)),
            },
        ),
        (
            "batch-statistics",
            (scripts.interrupted(5), scripts.resumed()),
            {"model": models.normalized},
        ),
        (
            "given-optimizer",
            (scripts.interrupted(5), scripts.resumed()),
            {"extras": optimizers.both},
        ),
        ("same-trainer", (scripts.train_then_resume,), {}),
    )
)

ADAPTERS = (
    Setup("adapters/lora-bert", **LORA, args={**SAVES, "learning_rate": 0.05}),
    Setup(
        "adapters/lora-gpt2",
        **(TEXT | {"model": models.lora_gpt2}),
        args={**SAVES, "gradient_accumulation_steps": 2},
        extras=padded,
    ),
    Setup("adapters/lora-best", **LORA, args={**BEST, "learning_rate": 0.05}),
    Setup(
        "adapters/lora-resumed",
        **LORA,
        args={**SAVES, "learning_rate": 0.05},
        script=scripts.in_turn(scripts.interrupted(4), scripts.resumed()),
    ),
    Setup(
        "adapters/named-resumed",
        **(LORA | {"model": models.named_lora_bert}),
        args={**SAVES, "learning_rate": 0.05},
        script=scripts.in_turn(scripts.interrupted(4), scripts.resumed()),
    ),
    Setup(
        "adapters/two-best",
        **(LORA | {"model": models.two_lora_bert}),
        args={**BEST, "learning_rate": 0.05},
    ),
    Setup(
        "adapters/two-resumed",
        **(LORA | {"model": models.two_lora_bert}),
        args={**SAVES, "learning_rate": 0.05},
        script=scripts.in_turn(scripts.interrupted(4), scripts.resumed()),
        limit=Limit('it does not load the adapter "default" beside another one', since="5.23"),
    ),
)
