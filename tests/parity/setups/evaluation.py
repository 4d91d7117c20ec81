"""What is logged, evaluated, predicted and generated."""

from __future__ import annotations

from functools import partial

from transformers import DataCollatorForSeq2Seq, GenerationConfig

from tests.parity.bench import Limit, Setup
from tests.parity.parts import data, metrics, models, scripts
from tests.parity.setups.common import (
    CLASSES,
    GENERATES,
    NOISY,
    PADDED,
    PAIRS,
    SAVES,
    STEPS,
    TAGS,
    TEXT,
    padded,
)

LOGGING = (
    Setup("logging/every-fourth", args={"logging_steps": 4}),
    Setup("logging/first-step", args={"logging_steps": 5, "logging_first_step": True}),
    Setup("logging/epoch", args={"logging_strategy": "epoch"}),
    Setup("logging/no", args={"logging_strategy": "no"}),
    Setup(
        "logging/tokens-seen",
        **TEXT,
        args={"include_num_input_tokens_seen": "all"},
        extras=padded,
    ),
    Setup(
        "logging/tokens-seen-without-padding",
        **TEXT,
        args={"include_num_input_tokens_seen": "non_padding", "gradient_accumulation_steps": 2},
        extras=padded,
        limit=Limit("counts padding always", since="4.57"),
    ),
    Setup(
        "logging/memory",
        args={"skip_memory_metrics": False},
        script=scripts.train_and_evaluate,
    ),
)

EVALUATION = (
    Setup("evaluation/steps", args=STEPS, **NOISY),
    Setup("evaluation/epoch", args={"eval_strategy": "epoch"}, **NOISY),
    Setup("evaluation/on-start", args={"eval_on_start": True, "eval_strategy": "epoch"}),
    Setup("evaluation/delayed-steps", args={**STEPS, "eval_delay": 7}),
    Setup("evaluation/delayed-epochs", args={"eval_strategy": "epoch", "eval_delay": 2}),
    Setup(
        "evaluation/several-sets",
        eval=lambda: {"small": data.regression(5, 2), "large": data.evaluation()},
        args={**STEPS, **SAVES, "metric_for_best_model": "small_loss"},
        extras=lambda model: {"compute_metrics": metrics.distance},
    ),
    Setup(
        "evaluation/sets-by-name",
        eval=lambda: {"small": data.regression(5, 2), "large": data.evaluation()},
        script=scripts.evaluate_sets,
    ),
    Setup(
        "evaluation/metrics",
        args={"eval_strategy": "epoch"},
        extras=lambda model: {"compute_metrics": metrics.distance},
        script=scripts.evaluate_around,
    ),
    Setup(
        "evaluation/chosen-logits",
        **CLASSES,
        args={"eval_strategy": "epoch"},
        extras=lambda model: {
            "compute_metrics": metrics.hit_rate,
            "preprocess_logits_for_metrics": metrics.choose,
        },
    ),
    Setup(
        "evaluation/batch-metrics",
        args={"batch_eval_metrics": True, "eval_strategy": "epoch"},
        extras=lambda model: {"compute_metrics": metrics.running_distance()},
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "evaluation/inputs-and-losses",
        **TAGS,
        args={"include_for_metrics": ["inputs", "loss"], "eval_strategy": "epoch"},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.everything},
    ),
    Setup(
        "evaluation/accumulated",
        args={"eval_accumulation_steps": 2},
        extras=lambda model: {"compute_metrics": metrics.distance},
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "evaluation/uneven-lengths",
        **TAGS,
        args=STEPS,
        extras=lambda model: {**PADDED, "compute_metrics": metrics.accuracy},
        script=scripts.train_and_evaluate,
    ),
    Setup(
        "evaluation/uneven-lengths-accumulated",
        **TAGS,
        args={"eval_accumulation_steps": 1},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.accuracy},
        script=scripts.evaluate_only,
    ),
    Setup(
        "evaluation/batches-kept-apart",
        **TAGS,
        args={"eval_do_concat_batches": False},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.shapes},
        script=scripts.evaluate_only,
    ),
    Setup(
        "evaluation/ignored-keys",
        **(CLASSES | {"model": models.talkative_bert}),
        args={"eval_strategy": "epoch"},
        extras=lambda model: {"compute_metrics": metrics.accuracy},
        script=scripts.ignoring("hidden_states"),
    ),
    Setup(
        "evaluation/many-outputs",
        **(CLASSES | {"model": models.talkative_bert}),
        script=scripts.evaluate_only,
    ),
    Setup("evaluation/loss-only", args={"prediction_loss_only": True}, script=scripts.evaluate_only),
    Setup("evaluation/before-and-after", script=scripts.evaluate_around, **NOISY),
    Setup("evaluation/without-training", train=None, script=scripts.evaluate_only),
    Setup(
        "evaluation/stream",
        eval=partial(data.stream, 10),
        args=STEPS,
        extras=lambda model: {"compute_metrics": metrics.distance},
        script=scripts.train_and_evaluate,
    ),
    Setup("evaluation/table-streamed", eval=data.streamed_table, args=STEPS),
    Setup("evaluation/drop-last", args={"dataloader_drop_last": True, **STEPS}),
    Setup("evaluation/predictions", script=scripts.predict_unlabelled),
    Setup("evaluation/predictions-in-bf16", args={"bf16": True}, script=scripts.predict_unlabelled),
    Setup("evaluation/no-set", eval=None),
)

GENERATION = (
    Setup(
        "generation/t5",
        model=models.t5,
        **PAIRS,
        args={**GENERATES, **STEPS},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.generated_length},
        script=scripts.generate(),
    ),
    Setup(
        "generation/bart-beams",
        model=models.bart,
        **PAIRS,
        args={**GENERATES, "generation_num_beams": 2},
        extras=lambda model: {**PADDED, "compute_metrics": metrics.generated_length},
        script=scripts.generate(),
    ),
    Setup(
        "generation/given-arguments",
        model=models.t5,
        **PAIRS,
        args=GENERATES,
        extras=lambda model: {**PADDED, "compute_metrics": metrics.generated_length},
        script=scripts.generate(max_length=9, num_beams=2),
    ),
    Setup(
        "generation/sampled",
        model=models.t5,
        **PAIRS,
        args=GENERATES,
        extras=lambda model: {**PADDED, "compute_metrics": metrics.generated_length},
        script=scripts.generate(max_new_tokens=4, do_sample=True),
    ),
    Setup(
        "generation/configuration",
        model=models.t5,
        **PAIRS,
        args={
            "predict_with_generate": True,
            "num_train_epochs": 1,
            "generation_config": GenerationConfig(
                max_length=7, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
            ),
        },
        extras=lambda model: {**PADDED, "compute_metrics": metrics.generated_length},
        script=scripts.generate(),
    ),
    Setup(
        "generation/label-smoothing",
        model=models.bart,
        **PAIRS,
        args={**GENERATES, "label_smoothing_factor": 0.1, "eval_strategy": "epoch"},
        extras=lambda model: {
            "data_collator": DataCollatorForSeq2Seq(data.tokenizer(), model),
            "compute_metrics": metrics.generated_length,
        },
    ),
    Setup(
        "generation/not-generating",
        model=models.t5,
        **PAIRS,
        args={"num_train_epochs": 1, "eval_strategy": "epoch"},
        extras=padded,
    ),
)
