"""Conversations with tools."""

from __future__ import annotations

from typing import Any

import torch

from tests.trl.setups import parts


class Echo:
    """A tool that says what it was asked, or more of it, or fails."""

    def __call__(self, query: str) -> str:
        if "fail" in query:
            raise ValueError("no " + query)
        return query * 40 if "long" in query else f"<{query}>"


def _environment(library: Any, kind: str = "causal", **given: Any) -> Any:
    heads = library("models.modeling_value_head")
    name, model = {
        "causal": ("AutoModelForCausalLMWithValueHead", parts.causal),
        "seq2seq": ("AutoModelForSeq2SeqLMWithValueHead", parts.seq2seq),
    }[kind]
    wrapped = getattr(heads, name).from_pretrained(model())
    arguments = {"tools": [Echo()], "reward_fn": lambda texts: [float(len(text)) for text in texts]}
    return library("environment.base_environment").TextEnvironment(
        wrapped, parts.tokenizer(), **{"prompt": "a task: ", **arguments, **given}
    )


def _outcome(found: Any) -> dict[str, Any]:
    queries, responses, masks, rewards, histories = found
    return {
        "queries": [each.tolist() for each in queries],
        "responses": [each.tolist() for each in responses],
        "masks": [each.tolist() for each in masks],
        "rewards": rewards,
        "texts": [history.text for history in histories],
        "text_spans": [list(map(list, history.text_spans)) for history in histories],
        "token_spans": [list(map(list, history.token_spans)) for history in histories],
        "system_spans": [history.system_spans for history in histories],
        "completed": [history.completed for history in histories],
        "truncated": [history.truncated for history in histories],
    }


def scripted(library: Any) -> dict[str, Any]:
    """Whole conversations in which the model says what stands in a list."""
    environment = _environment(library, max_turns=3, max_tool_reponse=40)
    spoken = iter(
        [
            "<request><Echo>one<call>",
            "I <request><Echo>long<call>",
            "<request><Echo>fail<call>",
            "<request><Nobody>two<call>",
            "<request>three<call>",
            "no tool",
            "x <request><Echo>a>b<call>",
            "done<submit>",
            "<call> <request> <Echo>four",
            "<request><Echo>\nfive<call>",
            "the end</s>",
            "<request><Echo>six<call>",
            "it is<submit>",
            "<request><Echo>seven<call>",
        ]
    )

    def speak(queries: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        texts = [next(spoken, "nothing more<submit>") for _ in queries]
        return [torch.tensor(environment.tokenizer(text).input_ids) for text in texts]

    environment._generate_batched = speak
    return _outcome(environment.run([f"{word} question" for word in ("a", "b", "c", "d", "e", "f")]))


def generated(library: Any) -> dict[str, Any]:
    """Whole conversations in which the model says what it samples."""
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "pad_token_id": 0}
    environment = _environment(library, generation_kwargs=options, max_turns=3)
    # Short strings, which a tiny model does produce.
    environment.call_token, environment.request_token, environment.submit_token = "e", "o", "z"
    torch.manual_seed(1)
    return _outcome(environment.run(["how is the soup?", "tell a story", "what a day"]))


def batches(library: Any) -> dict[str, Any]:
    """Answers to queries of unequal length, by either kind of model."""
    queries = [torch.arange(10, 14), torch.arange(20, 27), torch.arange(30, 35)]
    found = {}
    for kind in ("causal", "seq2seq"):
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": 6, "pad_token_id": 0}
        environment = _environment(library, kind, generation_kwargs=options)
        torch.manual_seed(2)
        environment.call_token = "s"  # noqa: S105 (no password)
        for size in (2, 16):
            answers = environment._generate_batched(queries, batch_size=size, pad_to_multiple_of=4)
            found[f"{kind}_{size}"] = [answer.tolist() for answer in answers]
        found[f"{kind}_side"] = environment.tokenizer.padding_side
    return found


def criteria(library: Any) -> dict[str, Any]:
    """What the stopping criterion has counted after each token."""
    tokenizer = parts.tokenizer()
    rows = [
        tokenizer(text).input_ids[:18]
        for text in (
            "a story about a <call> and more of it all",
            "the boat on the wide sea is<submit> it, and more of it",
        )
    ]
    tokens = torch.tensor(rows)
    stop = library("environment.base_environment").StringStoppingCriteria(["<call>", "sea"], tokenizer)
    found = []
    for end in range(2, tokens.shape[1] + 1):
        found.append([bool(stop(tokens[:, :end], None)), *stop.generated_tokens])
        if found[-1][0]:
            break
    return {"counted": found, "first_call": stop.first_call, "start": stop.start_length}
