"""Callbacks that steer or disturb a run, and ways to begin and end one."""

from __future__ import annotations

from functools import partial

from tests.parity.bench import Setup
from tests.parity.parts import callbacks, data, models, scripts
from tests.parity.setups.common import NOISY, SAVES, STEPS, calls

CALLBACKS = (
    *(
        Setup(
            f"callbacks/{flag.replace('_', '-')}-{event.removeprefix('on_').replace('_', '-')}",
            args={"logging_steps": 5, "save_steps": 100, "save_strategy": "steps"},
            extras=calls(partial(callbacks.flags, event, 3, **{flag: True})),
            **NOISY,
        )
        for event in ("on_step_begin", "on_step_end")
        for flag in (
            "should_log",
            "should_evaluate",
            "should_save",
            "should_epoch_stop",
            "should_training_stop",
        )
    ),
    Setup(
        "callbacks/all-at-epoch-end",
        extras=calls(partial(callbacks.flags, "on_epoch_end", should_evaluate=True, should_save=True)),
    ),
    Setup(
        "callbacks/all-at-epoch-begin",
        extras=calls(partial(callbacks.flags, "on_epoch_begin", should_evaluate=True, should_save=True)),
    ),
    Setup(
        "callbacks/stop-epoch-within-window",
        args={"gradient_accumulation_steps": 3},
        extras=calls(partial(callbacks.flags, "on_substep_end", 1, should_epoch_stop=True)),
    ),
    Setup(
        "callbacks/stop-within-window",
        args={"gradient_accumulation_steps": 3, **SAVES},
        extras=calls(partial(callbacks.flags, "on_substep_end", 2, should_training_stop=True)),
    ),
    Setup(
        "callbacks/stop-epoch-after-window",
        args={"gradient_accumulation_steps": 2},
        extras=calls(partial(callbacks.flags, "on_step_end", 2, should_epoch_stop=True)),
    ),
    Setup(
        "callbacks/stop-at-train-begin",
        extras=calls(partial(callbacks.flags, "on_train_begin", should_training_stop=True)),
    ),
    Setup(
        "callbacks/stop-on-evaluate",
        args=STEPS,
        extras=calls(partial(callbacks.flags, "on_evaluate", 6, should_training_stop=True)),
    ),
    Setup(
        "callbacks/stop-on-log",
        extras=calls(partial(callbacks.flags, "on_log", 4, should_training_stop=True)),
    ),
    Setup(
        "callbacks/stop-epoch-on-save",
        args=SAVES,
        extras=calls(partial(callbacks.flags, "on_save", 3, should_epoch_stop=True)),
    ),
    Setup(
        "callbacks/save-while-evaluating",
        args=STEPS,
        extras=calls(partial(callbacks.flags, "on_prediction_step", 3, should_save=True)),
    ),
    Setup(
        "callbacks/no-evaluation-after-all",
        args={**STEPS, **SAVES},
        extras=calls(partial(callbacks.flags, "on_step_end", 6, should_evaluate=False, should_save=False)),
    ),
    Setup(
        "callbacks/other-control",
        extras=calls(partial(callbacks.new_control, "on_step_end", 4, should_training_stop=True)),
    ),
    Setup("callbacks/freeze-midway", extras=calls(partial(callbacks.freeze, 3))),
    Setup(
        "callbacks/thaw-midway",
        model=models.half_frozen_regression,
        args={"optim": "sgd", "lr_scheduler_type": "constant"},
        extras=calls(partial(callbacks.thaw, 3)),
        script=scripts.failing,
    ),
    Setup("callbacks/fewer-steps-midway", extras=calls(partial(callbacks.other_length, 2, 5))),
    Setup("callbacks/more-steps-midway", extras=calls(partial(callbacks.other_length, 2, 50))),
    Setup(
        "callbacks/other-clipping-midway",
        args={"optim": "sgd"},
        extras=calls(partial(callbacks.other_arguments, 3, max_grad_norm=0.01)),
    ),
    Setup("callbacks/added-within", script=scripts.add_callback_within),
    Setup("callbacks/halve-rate", extras=calls(callbacks.halve_rate)),
    Setup("callbacks/disturb-gradients", extras=calls(callbacks.disturb_gradients)),
    Setup(
        "callbacks/disturb-gradients-with-accumulation",
        args={"gradient_accumulation_steps": 3},
        extras=calls(callbacks.disturb_gradients),
    ),
    Setup("callbacks/weights-around-step", script=scripts.weighed),
    Setup("callbacks/state", args=SAVES, extras=calls(callbacks.StepCounter)),
    *(
        Setup(f"callbacks/{name}-{event.removeprefix('on_').replace('_', '-')}", script=script)
        for event in ("on_step_end", "on_epoch_end")
        for name, script in (
            ("evaluates", scripts.within(event, lambda t: t.evaluate(metric_key_prefix="mid"))),
            ("predicts", scripts.within(event, lambda t: t.predict(data.unlabelled()))),
            ("saves", scripts.within(event, lambda t: t.save_model(t.args.output_dir + "/mid"))),
            ("evaluates-another", scripts.within(event, lambda t: t.evaluate(), another=True)),
            ("trains-another", scripts.within(event, lambda t: t.train(), another=True)),
        )
    ),
)

SESSIONS = (
    Setup("sessions/train-twice", script=scripts.train_twice, args=STEPS, **NOISY),
    Setup("sessions/train-twice-saving", script=scripts.train_twice, args=SAVES),
    Setup("sessions/interleaved", script=scripts.interleaved, **NOISY),
    Setup("sessions/in-turn", script=scripts.in_turn(scripts.train, scripts.train), **NOISY),
    Setup("sessions/train-after-crash", script=scripts.train_after_crash, args=SAVES, **NOISY),
    Setup(
        "sessions/crash-then-evaluate",
        script=scripts.evaluate_after_crash,
        args={"gradient_accumulation_steps": 2},
    ),
    Setup("sessions/keyboard-interrupt", script=scripts.interrupted(3, KeyboardInterrupt)),
    Setup("sessions/system-exit", script=scripts.interrupted(3, SystemExit)),
)
