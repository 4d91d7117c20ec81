"""Precision, clipping, odd losses, optimizers and schedulers."""

from __future__ import annotations

import torch

from tests.parity.bench import Limit, Setup
from tests.parity.parts import models, optimizers, overrides, scripts, steps
from tests.parity.setups.common import CLASSES, NEEDS_5, NOISY, SAVES, STEPS, TEXT, padded

NUMERICS = (
    Setup("numerics/bf16", **CLASSES, args={"bf16": True, **STEPS}),
    Setup(
        "numerics/bf16-with-accumulation",
        **TEXT,
        args={"bf16": True, "gradient_accumulation_steps": 3},
        extras=padded,
    ),
    Setup(
        "numerics/bf16-full-eval",
        **CLASSES,
        args={"bf16_full_eval": True, "eval_strategy": "epoch"},
        script=scripts.evaluate_around,
    ),
    Setup("numerics/bf16-called-afterwards", args={"bf16": True}, script=scripts.call_afterwards),
    Setup(
        "numerics/bf16-product-outside",
        args={"bf16": True, **STEPS},
        subclass=steps.product_outside,
    ),
    Setup(
        "numerics/bf16-asking-the-accelerator",
        args={"bf16": True, "gradient_accumulation_steps": 2, **STEPS},
        subclass=steps.noted_accelerator,
        script=scripts.notes,
    ),
    Setup("numerics/bf16-without-training", args={"bf16": True}, script=scripts.evaluate_only),
    Setup("numerics/label-smoothing", **CLASSES, args={"label_smoothing_factor": 0.1, **STEPS}),
    Setup(
        "numerics/label-smoothing-of-tokens",
        **TEXT,
        args={"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2, **STEPS},
        extras=padded,
    ),
    Setup(
        "numerics/noisy-embeddings",
        **TEXT,
        args={"neftune_noise_alpha": 5.0, **STEPS},
        extras=padded,
        script=scripts.train_and_evaluate,
    ),
    Setup("numerics/clipping-off", args={"max_grad_norm": 0.0}),
    Setup("numerics/clipping-tight", args={"max_grad_norm": 0.01, "optim": "sgd"}),
    Setup(
        "numerics/clipping-none",
        args={"max_grad_norm": None},
        limit=Limit("compares the norm with zero unasked", before="5.3"),
    ),
    Setup("numerics/activation-checkpointing", **CLASSES, args={"activation_checkpointing": True}),
    Setup(
        "numerics/activation-checkpointing-reentrant",
        **CLASSES,
        args={
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": True},
            "num_train_epochs": 1,
        },
    ),
    Setup("numerics/nan-filtered", subclass=steps.not_a_number, args={"logging_steps": 3}),
    Setup(
        "numerics/nan-filtered-within-window",
        subclass=steps.not_a_number,
        args={"gradient_accumulation_steps": 2},
    ),
    Setup("numerics/nan-kept", subclass=steps.not_a_number, args={"logging_nan_inf_filter": False}),
    Setup("numerics/nan-weights", subclass=steps.exploding, args=STEPS),
    Setup("numerics/emptied-cache", args={"torch_empty_cache_steps": 2}),
    Setup("numerics/full-determinism", args={"full_determinism": True, **STEPS}, **NOISY),
    Setup("numerics/compiled", args={"torch_compile_backend": "eager", "max_steps": 3, **STEPS}),
    Setup(
        "numerics/compiled-ahead-of-time",
        args={"torch_compile_backend": "aot_eager", "max_steps": 3, "bf16": True},
        script=scripts.train_and_evaluate,
    ),
    Setup("numerics/other-seed", args={"seed": 1234}, **NOISY),
    Setup(
        "numerics/smaller-batches-found",
        model=models.hungry_regression,
        args={"auto_find_batch_size": True, "per_device_train_batch_size": 8},
    ),
    Setup(
        "numerics/smaller-batches-found-then-resumed",
        model=models.hungry_regression,
        args={"auto_find_batch_size": True, "per_device_train_batch_size": 8, **SAVES},
        script=scripts.in_turn(scripts.interrupted(4), scripts.resumed()),
    ),
)

OPTIMIZERS = (
    *(
        Setup(f"optimizers/{name}", args={"optim": name, "weight_decay": 0.1})
        for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    ),
    Setup(
        "optimizers/options",
        args={"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-5, "warmup_steps": 3},
    ),
    Setup(
        "optimizers/option-string",
        args={"optim": "sgd", "optim_args": "momentum=0.9"},
        limit=NEEDS_5("4.x reads `optim_args` for few optimizers, not for SGD"),
    ),
    Setup("optimizers/given", extras=optimizers.both, script=scripts.train_twice),
    Setup("optimizers/given-without-scheduler", extras=optimizers.alone),
    Setup(
        "optimizers/given-with-plateau",
        extras=optimizers.plateau,
        args={**STEPS, "metric_for_best_model": "loss"},
    ),
    Setup("optimizers/given-with-modes", extras=optimizers.with_modes, args=STEPS),
    Setup(
        "optimizers/class-and-options",
        extras=lambda model: {"optimizer_cls_and_kwargs": (torch.optim.Adamax, {"lr": 0.02, "eps": 1e-6})},
    ),
    Setup("optimizers/own-optimizer", subclass=overrides.own_optimizer, args=SAVES),
    Setup("optimizers/own-scheduler", subclass=overrides.own_scheduler, args=SAVES),
    Setup(
        "optimizers/own-optimizer-and-scheduler",
        subclass=overrides.own_optimizer_and_scheduler,
        args=SAVES,
    ),
)

SCHEDULERS = tuple(
    Setup(f"schedulers/{kind}", args={"lr_scheduler_type": kind, **args}, limit=limit)
    for kind, args, limit in (
        ("linear", {"warmup_steps": 4}, None),
        ("cosine", {"warmup_steps": 0.2}, None),
        ("cosine_with_restarts", {"lr_scheduler_kwargs": {"num_cycles": 2}}, None),
        ("constant", {}, None),
        ("constant_with_warmup", {"warmup_steps": 3, "gradient_accumulation_steps": 2}, None),
        ("polynomial", {"lr_scheduler_kwargs": {"power": 2.0}}, None),
        ("inverse_sqrt", {"warmup_steps": 2}, None),
        ("cosine_with_min_lr", {"lr_scheduler_kwargs": {"min_lr": 1e-3}}, None),
        (
            "warmup_stable_decay",
            {"warmup_steps": 3, "lr_scheduler_kwargs": {"num_decay_steps": 4}},
            None,
        ),
        (
            "reduce_lr_on_plateau",
            {**STEPS, "metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 0}},
            None,
        ),
        ("greedy", {**STEPS, "metric_for_best_model": "loss"}, Limit("`greedy` came with 5.4", since="5.4")),
    )
)
