"""Best-of-n sampling, as an alternative to training.

Mirrors `trl/extras/best_of_n_sampler.py` of TRL 0.7.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from compat.errors import ArgumentError
from compat.trl.core import set_seed
from compat.trl.models import SUPPORTED_ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import GenerationConfig

    from compat.trl.models.modeling_base import PreTrainedModelWrapper


class BestOfNSampler:
    """Generates several answers to each query and keeps those with the highest scores.

    Args:
        model: a model with a value head.
        tokenizer: the tokenizer of the model.
        queries_to_scores: maps texts, each of a query and its answer, to a score for each.
        length_sampler: returns the number of tokens to generate.
        sample_size: the number of answers generated for a query.
        seed: the seed of all generators, which the constructor sets.
        n_candidates: the number of answers kept.
        generation_config: passed to the model's `generate`.

    Raises:
        ValueError: the model has no value head, or `tokenizer` is not a tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModelWrapper,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], list[float]],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if seed is not None:
            set_seed(seed)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            msg = (
                "`tokenizer` must be a PreTrainedTokenizer or PreTrainedTokenizerFast, got "
                f"{type(tokenizer)}. Load one by `AutoTokenizer.from_pretrained`."
            )
            raise ArgumentError(msg)
        if not isinstance(model, SUPPORTED_ARCHITECTURES):
            supported = " or ".join(each.__name__ for each in SUPPORTED_ARCHITECTURES)
            msg = f"`model` must be a PreTrainedModelWrapper, got {type(model)}. Load it by {supported}."
            raise ArgumentError(msg)
        self.model = model
        self.tokenizer = tokenizer
        self.queries_to_scores = queries_to_scores
        self.length_sampler = length_sampler
        self.gen_config = generation_config
        self.sample_size = sample_size
        self.n_candidates = n_candidates

    def generate(
        self,
        tokenized_query: list[int] | torch.Tensor | list[torch.Tensor] | list[list[int]],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs: object,
    ) -> list[list[str]]:
        """Generate answers to one query, or to each of several.

        Args:
            tokenized_query: the tokens of one query, or a list of such.
            skip_special_tokens: whether texts omit special tokens.
            device: the device of the model.
            generation_kwargs: passed to the model's `generate`; override the configuration.

        Returns:
            For each query, its `n_candidates` best texts, the best one first.
        """
        return [
            self._best(query.to(device), skip_special_tokens, generation_kwargs)
            for query in _rows(tokenized_query)
        ]

    def _best(self, query: torch.Tensor, skip_special_tokens: bool, options: dict[str, Any]) -> list[str]:
        tokens = self.model.generate(
            query.repeat(self.sample_size, 1),
            max_new_tokens=self.length_sampler(),
            generation_config=self.gen_config,
            **options,
        )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=skip_special_tokens)
        scores = torch.as_tensor(self.queries_to_scores(texts))
        return [texts[place] for place in scores.topk(self.n_candidates).indices]


def _rows(queries: Any) -> Iterator[torch.Tensor]:
    """Yield each query as one row of tokens, (1, length)."""
    is_one = queries.ndim == 1 if isinstance(queries, torch.Tensor) else isinstance(queries[0], int)
    for query in [queries] if is_one else queries:
        yield torch.as_tensor(query).reshape(1, -1)
