"""Models, data and callbacks that tell what a run did with them."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tests import small


class Telling(small.Regression):
    """Tells the size of every batch and the type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.seen: list[Any] = []
        self.types: list[torch.dtype] = []
        self.hidden.register_forward_hook(lambda module, args, out: self.types.append(out.dtype))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.sizes.append(len(x))
        self.seen += x.int()[:, 0].tolist()
        return super().forward(x, labels)


class Words(nn.Module):
    """Predicts one of two classes from three words; tells what its embeddings were looked up as."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 4)
        self.out = nn.Linear(4, 2)
        self.seen: list[int] = []
        self.sizes: list[tuple[int, ...]] = []
        self.types: list[torch.dtype] = []
        self.exact: list[bool] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: Any = None
    ) -> dict[str, torch.Tensor]:
        self.seen += input_ids[:, 0].tolist()
        self.sizes.append(tuple(input_ids.shape))
        embedded = self.embedding(input_ids)
        self.exact.append(torch.equal(embedded, self.embedding.weight[input_ids]))
        logits = self.out(embedded.mean(dim=1))
        self.types.append(logits.dtype)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def words(count: int = 12, length: int = 3) -> list[dict[str, torch.Tensor]]:
    """Rows for `Words`: the first word is the number of the row, the last one is padding."""
    return [
        {
            "input_ids": torch.tensor([row, *range(2, length + 1)]),
            "attention_mask": torch.tensor([1] * (length - 1) + [0]),
            "labels": torch.tensor(row % 2),
        }
        for row in range(count)
    ]


def numbered(count: int = 12) -> list[dict[str, torch.Tensor]]:
    """Rows for `Telling` that carry their own number."""
    return [{"x": torch.full((4,), float(row)), "labels": torch.ones(1)} for row in range(count)]


def bert(**changes: Any) -> nn.Module:
    """A tiny model of transformers' own, whose first layer tells when it runs and with gradients or not."""
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
        **changes,
    )
    model = transformers.BertForSequenceClassification(config)
    model.runs = []
    model.caches = []
    model.bert.encoder.layer[0].intermediate.register_forward_pre_hook(
        lambda module, args: model.runs.append(torch.is_grad_enabled())
    )
    model.register_forward_pre_hook(lambda module, args: model.caches.append(model.config.use_cache))
    return model


def causal(**changes: Any) -> nn.Module:
    """A tiny language model, which has a cache to use."""
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    model = transformers.GPT2LMHeadModel(config)
    model.caches = []
    model.register_forward_pre_hook(lambda module, args: model.caches.append(model.config.use_cache))
    return model


def text(count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Rows for `causal`."""
    return [{"input_ids": torch.arange(4) + row, "labels": torch.arange(4) + row} for row in range(count)]


def t5() -> nn.Module:
    """A tiny model that generates; it tells how many rows its decoder gets."""
    config = transformers.T5Config(
        vocab_size=32,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        # Of no use to a model without a tokenizer: a run that ends early has no length to look at.
        eos_token_id=None,
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.generation_config.max_length = 9
    model.decoded = set()
    model.decoder.register_forward_hook(
        lambda module, args, out: model.decoded.add(out.last_hidden_state.shape[0])
    )
    return model


class Workers(Dataset):
    """Rows that tell which process they were made in, and by which worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        worker = get_worker_info()
        where = os.getpid() if worker else -1
        return {"x": torch.full((4,), float(where)), "labels": torch.zeros(1)}


class Stream(IterableDataset):
    """Rows without a length."""

    def __iter__(self) -> Any:
        return iter(small.rows())


class At(transformers.TrainerCallback):
    """Calls a function with the state at one event.

    Args:
        event: the event.
        call: what to call, with arguments, state and control.
    """

    def __init__(self, event: str, call: Any) -> None:
        setattr(self, event, functools.partial(self._run, call))

    @staticmethod
    def _run(call: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        call(args, state, control)


class Slow(Dataset):
    """Four numbered rows; those of the first batch take their time."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(0.5 if index < 2 else 0)
        return {"x": torch.full((4,), float(index)), "labels": torch.zeros(1)}
