"""Collators, packing, running statistics and the smaller helpers."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.trl import runs
from tests.trl.setups import parts

TALK = [
    "### Human: how is the soup? ### Assistant: the soup is warm. ### Human: good? ### Assistant: good.",
    "a story ### Assistant: I would not see it ### Human: what a day! ### Assistant: the sun is up ### "
    "Human: ok",
    "### Assistant: no question here, only an answer and another ### Assistant: answer",
    "### Human: and no answer at all?",
    "neither of them",
]


def completions(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    examples = [tokenizer(text) for text in TALK]
    ids = tokenizer(" ### Assistant:")["input_ids"]
    found: dict[str, Any] = {}
    for name, template, instruction, options in (
        ("one", " ### Assistant:", None, {}),
        ("ids", ids, None, {"ignore_index": -1, "pad_to_multiple_of": 8}),
        ("turns", " ### Assistant:", "### Human:", {}),
        ("short", " Assistant", " Human", {}),
    ):
        collator = library("trainer.utils").DataCollatorForCompletionOnlyLM(
            template, instruction, tokenizer=tokenizer, **options
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            batch = collator(examples)
        found |= {f"{name}.{part}": batch[part] for part in ("input_ids", "labels")}
        found[f"{name}.warnings"] = [
            str(one.message).split("`")[0] for one in said if "key" in str(one.message)
        ]
    return found


def packing(library: Any) -> dict[str, Any]:
    tokenizer = parts.tokenizer()
    rows = [{"text": text, "other": text[::-1]} for text in runs.TEXTS]
    found: dict[str, Any] = {}
    for name, taken, options in (
        ("small_buffers", 99, {"dataset_text_field": "text", "num_of_sequences": 2, "chars_per_token": 2.9}),
        ("one_buffer", 99, {"formatting_func": lambda row: f"<{row['other']}>"}),
        ("endless", 40, {"dataset_text_field": "text", "infinite": True, "num_of_sequences": 3}),
        (
            "in_order",
            99,
            {
                "dataset_text_field": "text",
                "shuffle": False,
                "append_concat_token": False,
                "add_special_tokens": False,
            },
        ),
    ):
        runs.seed(5)
        dataset = library("trainer.utils").ConstantLengthDataset(tokenizer, rows, seq_length=7, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sequences = [row["input_ids"] for _, row in zip(range(taken), dataset, strict=False)]
        found |= {
            f"{name}.sequences": torch.stack(sequences),
            f"{name}.current_size": dataset.current_size,
            f"{name}.buffer": dataset.max_buffer_size,
            f"{name}.length": len(dataset),
            f"{name}.next_draw": random.random(),  # noqa: S311 (a test)
        }
    return found


def padding(library: Any) -> dict[str, Any]:
    utils = library("trainer.utils")
    triples = [
        {
            "prompt_input_ids": [5, 6, 7][: 1 + place],
            "prompt_attention_mask": [1, 1, 1][: 1 + place],
            "chosen_input_ids": [5, 6, 8, 9][: 2 + place],
            "chosen_attention_mask": [1, 1, 1, 1][: 2 + place],
            "chosen_labels": [-100, 6, 8, 9][: 2 + place],
            "rejected_labels": [3, 4, 5][: 3 - place],
            "reference_chosen_logps": -1.5 * place,
            "prompt": "a" * place,
        }
        for place in range(3)
    ]
    plain = utils.DPODataCollatorWithPadding(pad_token_id=9, label_pad_token_id=-7)(triples)
    encoded = [{k: v for k, v in row.items() if k != "chosen_input_ids"} for row in triples]
    encoder = utils.DPODataCollatorWithPadding(pad_token_id=9, is_encoder_decoder=True)(encoded)
    pairs = [
        {
            "input_ids_chosen": [5, 6, 7][: 1 + place],
            "attention_mask_chosen": [1, 1, 1][: 1 + place],
            "input_ids_rejected": [5] * (4 - place),
            "attention_mask_rejected": [1] * (4 - place),
            "margin": place / 2,
        }
        for place in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewards = utils.RewardDataCollatorWithPadding(parts.tokenizer(), max_length=3)(pairs)
        longer = utils.RewardDataCollatorWithPadding(
            parts.tokenizer(), padding="max_length", max_length=6, pad_to_multiple_of=4
        )([{k: v for k, v in row.items() if k != "margin"} for row in pairs])
    tensor = torch.arange(6.0).view(2, 3)
    return {
        **{f"plain.{name}": value for name, value in plain.items()},
        **{f"encoder.{name}": value for name, value in encoder.items()},
        **{f"rewards.{name}": value for name, value in rewards.items()},
        **{f"longer.{name}": value for name, value in longer.items()},
        "to_length": utils.pad_to_length(tensor, 5, -1),
        "to_length.rows": utils.pad_to_length(tensor, 3, 0.5, dim=0),
        "to_length.long_enough": utils.pad_to_length(tensor, 2, -1),
    }


def statistics(library: Any) -> dict[str, Any]:
    utils = library("trainer.utils")
    draws = torch.Generator().manual_seed(2)
    moments = utils.RunningMoments(SimpleNamespace(use_distributed=False))
    found: dict[str, Any] = {}
    for place, size in enumerate((4, 7, 2)):
        mean, std = moments.update(torch.randn(size, generator=draws) * (place + 1) + place)
        found |= {
            f"moments.{place}": [
                mean,
                std,
                *(float(getattr(moments, n)) for n in ("mean", "std", "var", "count")),
            ]
        }
    alone = SimpleNamespace(device="cpu", reduce=lambda tensor: tensor * 2)
    numbers = torch.randn(3, 4, generator=draws)
    mask = (torch.rand(3, 4, generator=draws) > 0.4).float()
    for name, values in (("whole", (numbers, None)), ("masked", (numbers * mask, mask))):
        found[f"global.{name}"] = [float(one) for one in utils.get_global_statistics(alone, *values)]
    tracker = utils.PerPromptStatTracker(buffer_size=4, min_count=2)
    for place, (prompts, rewards) in enumerate(
        (
            (["a", "b", "a"], [1.0, 2.0, 4.0]),
            (["b", "b", "c", "a"], [0.5, 1.5, 3.0, -2.0]),
            (["a"] * 3, [1.0, 2.0, 3.0]),
        )
    ):
        found[f"advantages.{place}"] = tracker.update(prompts, rewards)
    found["tracked"] = [
        [name, *map(float, stats.values())] for name, stats in sorted(tracker.get_stats().items())
    ]
    adaptive, fixed = utils.AdaptiveKLController(0.2, 6, 10000), utils.FixedKLController(0.3)
    for current in (3.0, 6.5, 20.0, np.float32(-1.0)):
        adaptive.update(current, 64)
        fixed.update(current, 64)
        found.setdefault("coefficients", []).append([float(adaptive.value), fixed.value])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = np.array([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]])
        found["accuracy"] = utils.compute_accuracy((scores, np.zeros(3)))["accuracy"]
    found["divided"] = utils.exact_div(12, 4, "a", "b")
    return found


def kinds_of_numbers(library: Any) -> dict[str, Any]:
    """What takes arrays as well as tensors."""
    utils, found = library("trainer.utils"), {}
    kinds = {"array": np.array, "tensor": torch.tensor}
    scores, right = [[0.1, 0.9], [0.8, 0.2], [0.7, 0.3]], [0, 0, 0]
    for name, kind in kinds.items():
        for of_labels, label_kind in kinds.items():
            pair = kind(scores), label_kind(right)
            found[f"accuracy.{name}.{of_labels}"] = utils.compute_accuracy(pair)["accuracy"]
        for shape, divergence in (("number", 6.3), ("row", [6.3])):
            controller = utils.AdaptiveKLController(0.2, target=6.0, horizon=1000)
            controller.update(kind(divergence), 10)
            found[f"coefficient.{name}.{shape}"] = float(controller.value)
    return found


def modules(library: Any) -> dict[str, Any]:
    utils = library("trainer.utils")
    model = parts.causal()
    model.transformer.drop.p = 0.3
    utils.disable_dropout_in_model(model)
    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = 5
    embedding.register_forward_hook(utils.neftune_post_forward_hook)
    runs.seed(7)
    ids = torch.tensor([[1, 5, 9], [2, 2, 2]])
    found = {
        "quiet": embedding.eval()(ids),
        "noisy": embedding.train()(ids),
        "dropout": model.transformer.drop.p,
    }
    for name, given in (("none", None), ("new", {}), ("list", {"tags": ["a"]}), ("text", {"tags": "a"})):
        found[f"tags.{name}"] = utils.trl_sanitze_kwargs_for_tagging(model, ["trl", "sft"], given)
    config = library("trainer").ModelConfig(
        model_name_or_path="x", use_peft=True, lora_r=3, load_in_8bit=True
    )
    adapter = utils.get_peft_config(config)
    names = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "modules_to_save")
    found |= {f"adapter.{name}": getattr(adapter, name) for name in names}
    found |= {f"config.{name}": value for name, value in config.to_dict().items()}
    found["map"] = utils.get_kbit_device_map()
    return found


def formatting(library: Any) -> dict[str, Any]:
    import datasets

    from tests.trl.setups.sft import CHATS, TEMPLATE

    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    find = library("extras.dataset_formatting").get_formatting_func_from_dataset
    found: dict[str, Any] = {}
    for name, columns in (
        ("messages", {"messages": CHATS}),
        ("conversations", {"conversations": CHATS, "other": [1] * len(CHATS)}),
        ("instruction", {"prompt": ["how", "what"], "completion": ["so", "that"]}),
        ("more", {"prompt": ["how"], "completion": ["so"], "other": ["x"]}),
        ("numbers", {"messages": [[1, 2]]}),
    ):
        rows = datasets.Dataset.from_dict(columns)
        function = find(rows, tokenizer)
        found[name] = None if function is None else [function(rows[0]), function(rows[0:2])]
    found["list"] = find([{"messages": CHATS}], tokenizer)
    bare = parts.tokenizer()
    bare.chat_template = None
    rows = datasets.Dataset.from_dict({"messages": CHATS})
    found["without_a_template"] = find(rows, bare)(rows[0])
    return found
