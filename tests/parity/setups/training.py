"""How long, on what and in which steps is trained."""

from __future__ import annotations

from functools import partial

from tests.parity.bench import Limit, Setup
from tests.parity.parts import data, metrics, models, optimizers, scripts, steps
from tests.parity.setups.common import (
    CLASSES,
    FRACTIONS,
    NOISY,
    PADDED,
    PAIRS,
    SAVES,
    STEPS,
    TAGS,
    TEXT,
    UNDISPATCHED,
    padded,
)

MODELS = (
    Setup("models/plain"),
    Setup("models/tuple-output", model=models.tuple_regression, script=scripts.train_and_evaluate),
    Setup("models/dropout", model=models.noisy_regression, script=scripts.train_and_evaluate),
    Setup("models/arrives-in-eval-mode", model=models.sleeping_regression),
    Setup("models/half-frozen", model=models.half_frozen_regression, args=SAVES),
    Setup("models/bert", **CLASSES, script=scripts.train_and_evaluate),
    Setup("models/gpt2", **TEXT, extras=padded, script=scripts.train_and_evaluate),
    Setup("models/t5", model=models.t5, **PAIRS, extras=padded),
    Setup("models/bart", model=models.bart, **PAIRS, extras=padded),
    Setup("models/vit", model=models.vit, train=data.images, eval=partial(data.images, 6, 1)),
    Setup(
        "models/batch-statistics",
        model=models.normalized,
        args={"eval_strategy": "epoch", "gradient_accumulation_steps": 2, "save_strategy": "epoch"},
        script=scripts.train_and_evaluate,
    ),
    Setup("models/caches-in-evaluation", model=models.caching, args={"eval_on_start": True}),
    Setup(
        "models/model-init",
        extras=lambda model: {"model": None, "model_init": models.noisy_regression},
        script=scripts.train_twice,
    ),
    Setup(
        "models/loss-function",
        **TEXT,
        args={"gradient_accumulation_steps": 2},
        extras=lambda model: {**PADDED, "compute_loss_func": optimizers.summed_token_loss},
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "models/own-loss-function-on-plain-model",
        args={"gradient_accumulation_steps": 2},
        extras=lambda model: {"compute_loss_func": optimizers.summed_square_loss},
    ),
)

ACCUMULATION = (
    *(
        Setup(f"accumulation/{n}", args={"gradient_accumulation_steps": n, **STEPS}, **NOISY)
        for n in (2, 3, 4)
    ),
    *(
        Setup(
            f"accumulation/tokens-{n}",
            **TEXT,
            args={"gradient_accumulation_steps": n},
            extras=padded,
        )
        for n in (2, 3, 4)
    ),
    Setup("accumulation/longer-than-epoch", args={"gradient_accumulation_steps": 10}),
    Setup(
        "accumulation/drop-last",
        args={"gradient_accumulation_steps": 4, "dataloader_drop_last": True},
    ),
    Setup(
        "accumulation/average-tokens-across-devices",
        **TEXT,
        args={"gradient_accumulation_steps": 3, "average_tokens_across_devices": True},
        extras=padded,
    ),
    Setup(
        "accumulation/no-average-across-devices",
        **TEXT,
        args={"gradient_accumulation_steps": 3, "average_tokens_across_devices": False},
        extras=padded,
    ),
    Setup(
        "accumulation/what-a-micro-step-sees",
        args={"gradient_accumulation_steps": 3},
        subclass=steps.noted_step,
        script=scripts.notes,
    ),
    Setup(
        "accumulation/length-of-each-window",
        args={"gradient_accumulation_steps": 3},
        subclass=steps.noted_window,
        script=scripts.notes,
        limit=Limit("has no `current_gradient_accumulation_steps`", since="4.55"),
    ),
    Setup(
        "accumulation/by-accelerator-config",
        args={"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}},
    ),
    Setup(
        "accumulation/synchronizing-each-batch",
        args={
            "gradient_accumulation_steps": 3,
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        },
        subclass=steps.noted_step,
        script=scripts.notes,
    ),
    Setup(
        "accumulation/what-a-token-micro-step-sees",
        **TEXT,
        args={"gradient_accumulation_steps": 4},
        extras=padded,
        subclass=steps.noted_step,
        script=scripts.notes,
    ),
)

LENGTH = (
    Setup("length/three-epochs", args={"num_train_epochs": 3}, **NOISY),
    Setup("length/fraction-of-epoch", args={"num_train_epochs": 0.5, **STEPS}),
    Setup(
        "length/fraction-with-accumulation",
        args={"num_train_epochs": 1.6, "gradient_accumulation_steps": 3},
    ),
    Setup("length/max-steps-below-epoch", args={"max_steps": 5}),
    Setup("length/max-steps-over-epochs", args={"max_steps": 17, "logging_strategy": "epoch"}),
    Setup(
        "length/max-steps-inside-window-epoch",
        args={"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "epoch"},
    ),
    Setup("length/drop-last", args={"dataloader_drop_last": True, "max_steps": 8}),
    Setup("length/fractions-as-steps", args={**FRACTIONS, "save_strategy": "steps"}),
    Setup(
        "length/fractions-with-accumulation",
        args={**FRACTIONS, "save_strategy": "steps", "gradient_accumulation_steps": 3},
    ),
    Setup("length/one-batch", train=partial(data.regression, 3), args={"num_train_epochs": 3}),
    Setup("length/no-epoch", args={"num_train_epochs": 0}),
)

DATA = (
    Setup("data/stream", train=data.stream, args={"max_steps": 9, **STEPS}),
    Setup(
        "data/stream-runs-out",
        train=partial(data.stream, 10),
        args={"max_steps": 8, "logging_strategy": "epoch", "save_strategy": "epoch"},
    ),
    Setup(
        "data/stream-runs-out-within-window",
        train=partial(data.stream, 10),
        args={"max_steps": 4, "gradient_accumulation_steps": 2},
    ),
    # accelerate's dispatcher fails on an epoch without a batch; without it the Trainer stops.
    Setup(
        "data/stream-once-dispatched",
        train=data.one_shot,
        args={"max_steps": 20},
        script=scripts.failing,
    ),
    Setup("data/stream-once", train=data.one_shot, args={"max_steps": 20, **UNDISPATCHED}),
    Setup(
        "data/stream-once-within-window",
        train=data.one_shot,
        args={"max_steps": 20, "gradient_accumulation_steps": 3, **SAVES, **UNDISPATCHED},
    ),
    Setup("data/stream-empty", train=partial(data.stream, 0), args={"max_steps": 5, **UNDISPATCHED}),
    Setup("data/table", train=data.table, eval=partial(data.table, 6), args=STEPS),
    Setup("data/table-streamed", train=data.streamed_table, args={"max_steps": 9}, **NOISY),
    Setup("data/table-streamed-shuffled", train=data.shuffled_stream, args={"max_steps": 16}),
    Setup("data/augmented", train=data.noisy, args=STEPS, **NOISY),
    Setup(
        "data/augmented-with-accumulation",
        train=data.noisy,
        args={"gradient_accumulation_steps": 3},
        **NOISY,
    ),
    Setup("data/workers", train=data.noisy, args={"dataloader_num_workers": 2}, **NOISY),
    Setup(
        "data/persistent-workers",
        args={"dataloader_num_workers": 2, "dataloader_persistent_workers": True, **STEPS},
        **NOISY,
    ),
    Setup("data/stream-workers", train=data.stream, args={"dataloader_num_workers": 1, "max_steps": 9}),
    Setup("data/stream-follows-epochs", train=data.epochs, args={"max_steps": 13}),
    Setup("data/rows-follow-epochs", train=data.epoch_rows, args={"num_train_epochs": 3}),
    Setup("data/collated-to-mapping", extras=lambda model: {"data_collator": data.wrapped}),
    Setup(
        "data/split-batches",
        args={"accelerator_config": {"split_batches": True, "even_batches": False}},
    ),
    Setup(
        "data/loader-options",
        args={"dataloader_pin_memory": False, "accelerator_config": {"non_blocking": True}},
    ),
    Setup(
        "data/group-by-length-column",
        **(TAGS | {"train": data.measured_tokens}),
        args={"train_sampling_strategy": "group_by_length", "length_column_name": "size"},
        extras=padded,
    ),
    Setup("data/data-seed", args={"data_seed": 3}, **NOISY),
    Setup(
        "data/seedless-sampler",
        args={"accelerator_config": {"use_seedable_sampler": False}},
        **NOISY,
    ),
    Setup(
        "data/group-by-length",
        **TAGS,
        args={"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.accuracy},
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "data/sequential",
        args={"train_sampling_strategy": "sequential"},
        limit=Limit("`train_sampling_strategy` came with 5.2", since="5.2"),
    ),
    Setup(
        "data/tokenizer",
        **TAGS,
        args={**SAVES, "num_train_epochs": 1},
        extras=lambda model: {**PADDED, "processing_class": data.tokenizer()},
    ),
    Setup("data/unused-columns-kept", args={"remove_unused_columns": False}),
)
