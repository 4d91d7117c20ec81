"""What many set-ups share: arguments, and models together with the data they read."""

from __future__ import annotations

from functools import partial

from tests.parity.bench import Limit
from tests.parity.parts import data, models

NEEDS_5 = partial(Limit, since="5")
FRACTIONS = {"logging_steps": 0.2, "eval_strategy": "steps", "eval_steps": 0.3, "save_steps": 0.5}
STEPS = {"eval_strategy": "steps", "eval_steps": 3}
SAVES = {"save_strategy": "steps", "save_steps": 3}
UNDISPATCHED = {"accelerator_config": {"dispatch_batches": False}}
BEST = {**STEPS, **SAVES, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
TEXT = {"model": models.gpt2, "train": data.text, "eval": partial(data.text, 6, 1)}
PADDED = {"data_collator": data.pad}
CLASSES = {"model": models.bert, "train": data.sentences, "eval": partial(data.sentences, 6, 1)}
TAGS = {"model": models.tagger, "train": data.tagged, "eval": partial(data.tagged, 7, 1)}
PAIRS = {"train": data.pairs, "eval": partial(data.pairs, 6, 1), "seq2seq": True}
GENERATES = {"predict_with_generate": True, "generation_max_length": 6, "num_train_epochs": 1}
LORA = {**CLASSES, "model": models.lora_bert}
NOISY = {"model": models.noisy_regression}


def padded(model):
    """Collate uneven rows."""
    return PADDED


def calls(*made, **more):
    """Extras with fresh callbacks, and whatever else is given."""
    return lambda model: {"callbacks": [make() for make in made], **more}
