from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from compat.trl.extras import BestOfNSampler
from compat.trl.models import AutoModelForCausalLMWithValueHead
from tests.trl.setups import parts

QUERY = [11, 24, 35]


def sampler(**given: Any) -> BestOfNSampler:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(parts.causal())
    given = {"queries_to_scores": lambda texts: [len(text) for text in texts], **given}
    return BestOfNSampler(model, parts.tokenizer(), length_sampler=lambda: 4, **given)


def generate(best: BestOfNSampler, query: Any, **given: Any) -> list[list[str]]:
    return best.generate(query, do_sample=True, top_k=0, pad_token_id=0, **given)


def test_the_best_scored_come_first() -> None:
    seen: list[list[str]] = []

    def score(texts: list[str]) -> list[torch.Tensor]:
        seen.append(texts)
        return [torch.tensor(float(place * 7 % 5)) for place in range(len(texts))]

    (found,) = generate(sampler(queries_to_scores=score, sample_size=5, n_candidates=2), QUERY)
    assert found == [seen[0][2], seen[0][4]]
    assert len(seen[0]) == 5


@pytest.mark.parametrize(
    "queries",
    [[QUERY, QUERY[:2]], [torch.tensor(QUERY), torch.tensor([QUERY])], torch.tensor([QUERY, QUERY])],
    ids=["lists", "tensors", "rows"],
)
def test_each_query_has_its_own(queries: Any) -> None:
    found = generate(sampler(n_candidates=3), queries, device="cpu")
    assert [len(texts) for texts in found] == [3, 3]


def test_one_sample_is_a_text_and_not_its_letters() -> None:
    best = sampler(sample_size=1)
    ((text,),) = generate(best, QUERY)
    assert text.startswith(best.tokenizer.decode(QUERY))


def test_a_seed_is_set_at_once() -> None:
    sampler(seed=3)
    first = random.random(), torch.rand(()).item()  # noqa: S311
    sampler(seed=3)
    assert first == (random.random(), torch.rand(()).item())  # noqa: S311


def test_other_models_and_tokenizers_are_refused() -> None:
    best = sampler()
    with pytest.raises(ValueError, match=r"`tokenizer` must be a PreTrainedTokenizer.*got <class 'str'>"):
        BestOfNSampler(best.model, "gpt2", len, len)
    with pytest.raises(ValueError, match=r"`model` must be a PreTrainedModelWrapper.*GPT2LMHeadModel"):
        BestOfNSampler(parts.causal(), best.tokenizer, len, len)
