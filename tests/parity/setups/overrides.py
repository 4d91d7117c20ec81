"""Subclasses of the Trainer."""

from __future__ import annotations

from tests.parity.bench import Setup
from tests.parity.parts import overrides, scripts, steps
from tests.parity.setups.common import BEST, CLASSES, STEPS, TEXT, padded

SUBCLASSES = (
    Setup("subclasses/own-loss", subclass=steps.own_loss, args={"gradient_accumulation_steps": 3}),
    Setup(
        "subclasses/token-loss",
        **TEXT,
        args={"gradient_accumulation_steps": 3, **STEPS},
        extras=padded,
        subclass=steps.token_loss,
    ),
    Setup("subclasses/logged-loss-parts", subclass=steps.logged_loss_parts, args={"logging_steps": 3}),
    *(
        Setup(
            f"subclasses/{make.__name__.replace('_', '-')}{tail}",
            subclass=make,
            args={"gradient_accumulation_steps": n, **STEPS},
            script=script,
        )
        for make, script in (
            (steps.own_backward, scripts.train),
            (steps.bare_backward, scripts.train),
            (steps.retained_backward, scripts.train),
            (steps.undetached_loss, scripts.train),
            (steps.skips_batches, scripts.train),
            (steps.steps_itself, scripts.train),
            (steps.noted_accelerator, scripts.notes),
            (steps.two_backwards, scripts.train),
            (steps.read_gradients, scripts.notes),
            (steps.scale_gradients, scripts.train),
        )
        for n, tail in ((1, ""), (3, "-with-accumulation"))
    ),
    Setup(
        "subclasses/own-backward-in-bf16",
        subclass=steps.own_backward,
        args={"bf16": True},
        **CLASSES,
    ),
    Setup(
        "subclasses/scale-gradients-of-tokens",
        **TEXT,
        args={"gradient_accumulation_steps": 2, "bf16": True},
        extras=padded,
        subclass=steps.scale_gradients,
    ),
    *(
        Setup(
            f"subclasses/{make.__name__.replace('_', '-')}",
            subclass=make,
            args={"eval_strategy": "epoch", **args},
            script=script,
        )
        for make, args, script in (
            (overrides.own_prediction_step, {}, scripts.train_and_evaluate),
            (overrides.gradient_in_prediction, {}, scripts.train_and_evaluate),
            (overrides.prepared_train_loader, {}, scripts.train),
            (
                overrides.own_evaluate,
                {"metric_for_best_model": "double"},
                scripts.train_and_evaluate,
            ),
            (overrides.own_evaluation_loop, {}, scripts.train_and_evaluate),
            (overrides.whole_evaluation_loop, {}, scripts.evaluate_around),
            (overrides.own_log, {}, scripts.train),
            (overrides.raw_train_loader, {"gradient_accumulation_steps": 2}, scripts.train),
            (overrides.list_train_loader, {"gradient_accumulation_steps": 2}, scripts.train),
            (overrides.raw_eval_loader, {}, scripts.train_and_evaluate),
            (overrides.sequential, {}, scripts.train),
            (overrides.own_save, {"save_strategy": "epoch"}, scripts.train),
            (overrides.own_save_checkpoint, {"save_strategy": "epoch"}, scripts.train),
            (overrides.own_windows, {"gradient_accumulation_steps": 3}, scripts.notes),
            (overrides.own_inputs, {}, scripts.train_and_evaluate),
            (overrides.own_context, {}, scripts.train_and_evaluate),
            (overrides.own_flos, {}, scripts.train),
            (overrides.own_inner_loop, {}, scripts.notes),
        )
    ),
    Setup(
        "subclasses/own-windows-of-tokens",
        **TEXT,
        args={"gradient_accumulation_steps": 3},
        extras=padded,
        subclass=overrides.own_windows,
        script=scripts.notes,
    ),
    Setup("subclasses/order-of-methods", subclass=overrides.watched, args=BEST, script=scripts.notes),
    Setup(
        "subclasses/order-of-methods-on-resuming",
        subclass=overrides.watched,
        args=BEST,
        script=scripts.in_turn(scripts.interrupted(5), scripts.resumed_with_notes),
    ),
)
