"""What an evaluation keeps, computes and generates."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import transformers

import compat
from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect, same


def keeps_predictions(bench: Bench) -> bool:
    """Whether a prediction gives back more than its metrics."""
    return bench.trainer().predict(small.rows(4)).predictions is not None


class Metrics:
    """Tells what it is called with."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def __call__(self, given: Any, compute_result: bool = True) -> dict[str, float]:
        self.given.append(given)
        return {"score": 1.0}


def given_to_metrics(bench: Bench) -> list[Any]:
    """What the metrics of an evaluation of five rows are computed from."""
    metrics = Metrics()
    bench.trainer(compute_metrics=metrics).evaluate()
    return metrics.given


def metric_calls(bench: Bench) -> int:
    """How often metrics are computed."""
    return len(given_to_metrics(bench))


def metrics_see(bench: Bench) -> tuple[bool, bool]:
    """Whether metrics are given the inputs, and the losses."""
    metrics = Metrics()
    trainer = bench.trainer(model=parts.Words(), eval_dataset=parts.words(4), compute_metrics=metrics)
    trainer.evaluate()
    (given,) = metrics.given
    return given.inputs is not None, given.losses is not None


def logits_kept(bench: Bench) -> list[tuple[int, ...]]:
    """The shapes in which metrics are given the logits."""
    (given,) = given_to_metrics(bench)
    apart = isinstance(given.predictions, list)
    return [batch.shape for batch in (given.predictions if apart else [given.predictions])]


def largest_pile(bench: Bench) -> int:
    """The greatest number of rows whose logits wait to be moved off the device."""
    piles: list[int] = []
    container = transformers.trainer_pt_utils.EvalLoopContainer
    move = container.to_cpu_and_numpy

    def noted(self: Any) -> None:
        if isinstance(self.tensors, torch.Tensor):
            piles.append(len(self.tensors))
        move(self)

    bench.patch.setattr(container, "to_cpu_and_numpy", noted)
    bench.trainer().predict(small.rows(5))
    return max(piles)


def gathered_as_objects(bench: Bench) -> bool:
    """Whether results are gathered as Python objects."""
    calls = bench.spy(sys.modules["accelerate.accelerator"], "gather_object", then=lambda data: data)
    bench.trainer().evaluate()
    return bool(calls)


def loop(bench: Bench) -> list[str]:
    """The method that is called to evaluate, and the one to predict."""
    called: list[str] = []

    class Noting(compat.Trainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            called.append("evaluation_loop")
            return super().evaluation_loop(*args, **kwargs)

        def prediction_loop(self, *args: Any, **kwargs: Any) -> Any:
            called.append("prediction_loop")
            return super().prediction_loop(*args, **kwargs)

    trainer = bench.trainer(Noting)
    first = []
    for ask in (trainer.evaluate, lambda: trainer.predict(small.rows(2))):
        called.clear()
        ask()
        first.append(called[0])
    return first


def predicted(bench: Bench) -> tuple[Any, set[int]]:
    """Predictions of a model that can generate, and the sizes of its decoder's batches."""
    model = parts.t5()
    rows = [{"input_ids": torch.arange(1, 5) + n, "labels": torch.arange(1, 4)} for n in range(2)]
    trainer = bench.trainer(
        compat.Seq2SeqTrainer,
        args=bench.arguments(compat.Seq2SeqTrainingArguments),
        model=model,
        train_dataset=None,
        eval_dataset=None,
    )
    predictions = trainer.predict(rows).predictions
    return (predictions[0] if isinstance(predictions, tuple) else predictions), model.decoded


def predicts_words(bench: Bench) -> bool:
    """Whether predictions are words, not logits."""
    return np.issubdtype(predicted(bench)[0].dtype, np.integer)


def words_predicted(bench: Bench) -> int:
    """How many words are generated for each row."""
    return predicted(bench)[0].shape[1]


def decoded_at_once(bench: Bench) -> set[int]:
    """How many rows are decoded at once."""
    return predicted(bench)[1]


def seq2seq_order(bench: Bench) -> list[int]:
    """The rows in the order that the model saw them in."""
    return bench.trained(
        kind=compat.Seq2SeqTrainer,
        args=bench.arguments(compat.Seq2SeqTrainingArguments),
        model=parts.Telling(),
        train_dataset=parts.numbered(),
    ).model.seen


BY_TWO = {"per_device_eval_batch_size": 2}
GENERATES = {"predict_with_generate": True}
FIVE_WORDS = transformers.GenerationConfig(
    max_length=5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=None
)

EVALUATION = (
    Effect("prediction_loss_only", True, keeps_predictions, (True, False)),
    Effect("batch_eval_metrics", True, metric_calls, (1, 3), base=BY_TWO),
    Effect("include_for_metrics", ["inputs"], metrics_see, ((False, False), (True, False))),
    Effect("include_for_metrics", ["loss"], metrics_see, ((False, False), (False, True)), note="loss"),
    Effect(
        "include_inputs_for_metrics",
        True,
        metrics_see,
        ((False, False), (True, False)),
        replaced_by="include_for_metrics",
        warns=True,
    ),
    Effect("eval_accumulation_steps", 2, largest_pile, (5, 4), base=BY_TWO),
    Effect("eval_do_concat_batches", False, logits_kept, ([(5, 1)], [(2, 1), (2, 1), (1, 1)]), base=BY_TWO),
    Effect("eval_use_gather_object", True, gathered_as_objects, (False, True)),
    Effect(
        "use_legacy_prediction_loop",
        True,
        loop,
        (["evaluation_loop"] * 2, ["prediction_loop"] * 2),
        warns=True,
    ),
    Effect("predict_with_generate", True, predicts_words, (False, True)),
    Effect("generation_max_length", 12, words_predicted, (9, 12), base=GENERATES),
    Effect("generation_num_beams", 3, decoded_at_once, ({2}, {2, 6}), base=GENERATES),
    Effect("generation_config", FIVE_WORDS, words_predicted, (9, 5), base=GENERATES),
    # For the script's own sampler: no release of transformers' Trainer reads it.
    Effect("sortish_sampler", True, seq2seq_order, same),
)
