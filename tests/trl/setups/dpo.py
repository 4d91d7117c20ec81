"""Runs of `DPOTrainer`, its rows and its losses."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import datasets
import torch

from tests.trl import runs
from tests.trl.setups import parts

PAIRS = {
    "prompt": ["how is the soup?", "how is the film? I would", "a", "what a day! the sun is up and the"],
    "chosen": [" the soup is warm and good", " see it again", " small boat", " bread is fresh"],
    "rejected": [" cold", "n't see it", "long story about a small boat on a wide sea", "re is care"],
}


def _rows() -> Any:
    return datasets.Dataset.from_dict({name: texts + texts[:2] for name, texts in PAIRS.items()})


def _trainer(library: Any, folder: str, given: dict[str, Any] | None = None, **options: Any) -> Any:
    runs.seed()
    return library("trainer").DPOTrainer(
        **{
            "model": options.get("model") or parts.causal(),
            "args": runs.arguments(library, folder, **(given or {})),
            "train_dataset": _rows(),
            "eval_dataset": _rows().select(range(4)),
            "tokenizer": parts.tokenizer(),
            "max_length": 24,
            "max_prompt_length": 8,
            **options,
        }
    )


def _run(library: Any, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(library, folder, given, **options)
        if options.get("precompute_ref_log_probs"):
            trainer.evaluate()
        output = trainer.train()
        trainer.evaluate()
        found = runs.outcome(trainer, output)
        # The model is its reference at first: which reward is the higher one is a matter of rounding.
        found["log.rewards/accuracies"] = found["log.rewards/accuracies"][1:]
        return {**found, "tags": sorted(trainer.model.model_tags or [])}


def sigmoid(library: Any) -> dict[str, Any]:
    given = {"gradient_accumulation_steps": 3, "num_train_epochs": 2}
    return _run(library, given, label_smoothing=0.2, beta=0.3)


def hinge_with_a_reference(library: Any) -> dict[str, Any]:
    other = parts.causal()
    other.transformer.wte.weight.data *= 1.5
    given = {"evaluation_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    return _run(library, given, loss_type="hinge", ref_model=other, beta=0.5)


def ipo_without_a_reference(library: Any) -> dict[str, Any]:
    return _run(library, {"max_steps": 3}, loss_type="ipo", reference_free=True)


def kto_with_a_reference_asked_once(library: Any) -> dict[str, Any]:
    return _run(library, {"num_train_epochs": 2}, loss_type="kto_pair", precompute_ref_log_probs=True)


def encoder_decoder(library: Any) -> dict[str, Any]:
    return _run(library, {"num_train_epochs": 1}, model=parts.seq2seq(), max_target_length=10)


def _adapted(*names: str) -> Any:
    import peft

    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(parts.causal(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    draws = torch.Generator().manual_seed(1)
    for adapter in names:
        for name, weights in model.named_parameters():
            if f".{adapter}." in name:
                weights.data = torch.randn(weights.shape, generator=draws) * 0.1
    return model


def adapter_switched_off(library: Any) -> dict[str, Any]:
    return _run(library, {"num_train_epochs": 2}, model=_adapted("default"))


def adapter_against_adapter(library: Any) -> dict[str, Any]:
    model = _adapted("policy", "held")
    model.set_adapter("policy")
    names = {"model_adapter_name": "policy", "ref_adapter_name": "held"}
    return _run(library, {"num_train_epochs": 2}, model=model, **names)


def rows_and_batches(library: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode, length in (("keep_end", 24), ("keep_start", 16), ("keep_end", 12)):
            trainer = _trainer(library, folder, truncation_mode=mode, max_length=length, max_prompt_length=6)
            case = f"{mode}_{length}"
            for place, row in enumerate(trainer.train_dataset):
                found |= {f"{case}.{place}.{name}": value for name, value in row.items()}
            batch = next(iter(trainer.get_eval_dataloader()))
            found |= {f"{case}.batch.{name}": value for name, value in batch.items()}
            together = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value)
            found |= {f"{case}.{name}": value for name, value in together.items()}
        trainer = _trainer(
            library, folder, model=parts.seq2seq(), max_target_length=5, max_length=16, max_prompt_length=6
        )
        batch = next(iter(trainer.get_eval_dataloader()))
        found |= {f"encoder.batch.{name}": value for name, value in batch.items()}
        together = trainer.concatenated_inputs(batch, is_encoder_decoder=True)
        found |= {f"encoder.{name}": value for name, value in together.items()}
        for name, forward in (("chosen", " not"), ("merged", "n't see"), ("inner", "x")):
            split = trainer.build_tokenized_answer("how is the film? I would", forward)
            found |= {f"split.{name}.{part}": ids for part, ids in split.items()}
    # newer tokenizers make none
    return {name: value for name, value in found.items() if "token_type_ids" not in name}


def losses(library: Any) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(3)
    logps = [torch.randn(5, generator=draws) * 4 for _ in range(4)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(library, folder)
        for kind in ("sigmoid", "hinge", "ipo", "kto_pair"):
            for smoothing, free in ((0.0, False), (0.3, True)):
                trainer.loss_type, trainer.label_smoothing, trainer.reference_free = kind, smoothing, free
                named = zip(("losses", "chosen", "rejected"), trainer.dpo_loss(*logps), strict=True)
                found |= {f"{kind}.{smoothing}.{name}": value for name, value in named}
        logits = torch.randn(2, 4, 7, generator=draws)
        labels = torch.tensor([[-100, 3, 0, 6], [-100, -100, 2, -100]])
        for average in (False, True):
            for encodes in (False, True):
                found[f"logps.{average}.{encodes}"] = trainer.get_batch_logps(
                    logits, labels.clone(), average_log_prob=average, is_encoder_decoder=encodes
                )
    return found


def samples(library: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(library, folder)
        batch = next(iter(trainer.get_eval_dataloader()))
        trainer.model.eval(), trainer.ref_model.eval()
        # one token at a time, of which there is one only: nothing is left to chance
        for model in (trainer.model, trainer.ref_model):
            model.generation_config.top_k = 1
        policy, reference = trainer.get_batch_samples(trainer.model, batch)
        return {"policy": policy, "reference": reference}
