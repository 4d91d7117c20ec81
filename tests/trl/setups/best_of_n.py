"""The best of several samples."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.trl.setups import parts


def _sampler(library: Any, **given: Any) -> Any:
    heads = library("models.modeling_value_head")
    model = heads.AutoModelForCausalLMWithValueHead.from_pretrained(parts.causal())
    return library("extras.best_of_n_sampler").BestOfNSampler(
        model,
        parts.tokenizer(),
        lambda texts: [float(len(text)) + text.count("e") / 100 for text in texts],
        length_sampler=library("core").LengthSampler(3, 9),
        **given,
    )


def samples(library: Any) -> dict[str, Any]:
    """Texts for one query and for several, in each of the forms that queries may have."""
    drawn = {"do_sample": True, "top_k": 0, "pad_token_id": 0}
    one, three = _sampler(library, seed=1), _sampler(library, sample_size=6, n_candidates=3, seed=2)
    configured = _sampler(
        library,
        seed=3,
        generation_config=transformers.GenerationConfig(do_sample=True, top_k=5, pad_token_id=0),
    )
    query = [11, 24, 35, 46]
    return {
        "of_a_list": one.generate(query, **drawn),
        "of_a_tensor": one.generate(torch.tensor(query), **drawn),
        "of_lists": three.generate([query, query[:2]], **drawn),
        "of_tensors": three.generate([torch.tensor(query), torch.tensor(query[1:])], **drawn),
        "with_special_tokens": one.generate([1, *query, 2], skip_special_tokens=False, **drawn),
        "configured": configured.generate(query),
    }
