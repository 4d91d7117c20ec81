from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import StoppingCriteriaList

from compat.trl.environment import TextEnvironment, TextHistory
from compat.trl.environment.base_environment import StringStoppingCriteria
from compat.trl.models import AutoModelForCausalLMWithValueHead
from tests.trl.setups import parts

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = torch.arange(3)


class Shout:
    def __call__(self, query: str) -> str:
        return query.upper()


@pytest.fixture(scope="module")
def make() -> Callable[..., TextEnvironment]:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(parts.causal())
    tokenizer = parts.tokenizer()
    return lambda **given: TextEnvironment(model, tokenizer, **{"tools": [Shout()], **given})


def history(*texts: str) -> TextHistory:
    """The first text is the system's, then the model and the system take turns."""
    told = TextHistory(texts[0], TOKENS)
    for number, text in enumerate(texts[1:]):
        told.append_segment(text, TOKENS, system=number % 2 == 1)
    return told


@pytest.mark.parametrize(("text", "tokens"), [("", TOKENS), ("text", TOKENS[:0])])
def test_an_empty_segment_is_refused(text: str, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Can't append empty text or token list to history"):
        TextHistory(text, tokens)


def test_segments_masks_and_spans_go_together() -> None:
    told = history("ask", "<call>", "answer", "end")
    assert told.text == "ask<call>answerend"
    assert [told.text[start:end] for start, end in told.text_spans] == ["ask", "<call>", "answer", "end"]
    assert told.token_masks.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert told.token_spans == [(0, 3), (3, 6), (6, 9), (9, 12)]
    query, response, mask = told.split_query_response_tokens()
    assert torch.equal(query, TOKENS)
    assert torch.equal(response, TOKENS.repeat(3))
    assert mask.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert told.last_text_segment == "end"


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        (lambda told: told.show_text(), "ask<call>answer\n\nReward: 0.5\n"),
        (
            lambda told: told.show_tokens(parts.tokenizer(), show_legend=True),
            "<pad> <s> </s> " * 3 + "\n\nReward: 0.5\n\n\n(Colour Legend: Prompt|System|Model|Reward)\n",
        ),
    ],
    ids=["text", "tokens"],
)
def test_a_conversation_is_shown_in_colours(
    show: Any, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = history("ask", "<call>", "answer")
    told.reward = 0.5
    assert told._colours() == [told.prompt_color, told.model_color, told.system_color]
    show(told)
    assert capsys.readouterr().out == expected
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(builtins, "print", pytest.fail)
    with pytest.warns(UserWarning, match=r"install rich to display (text|tokens)"):
        show(told)
    assert capsys.readouterr().out == ""


def test_the_legend_needs_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.warns(UserWarning, match="install rich to display colour legend"):
        history("ask").show_colour_legend()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<request><Shout>what<call>", ("Shout", "what")),
        ("so <request><Shout>a > b\n<call> and", ("Shout", "a > b\n")),
        ("<request><Shout><call>", ("Shout", "")),
        ("<request>what<call>", (None, None)),
        ("<Shout>what<call>", (None, None)),
        ("<request><Shout>what", (None, None)),
    ],
)
def test_a_call_is_parsed(make: Any, text: str, expected: tuple[Any, Any]) -> None:
    assert make().parse_tool_call(text) == expected


@pytest.mark.parametrize(
    ("last", "given", "model_turn", "expected"),
    [
        ("<request><Shout>a<call>", {}, True, (False, False)),
        ("no call", {}, True, (False, True)),
        ("no call", {}, False, (False, False)),
        ("it is<submit>", {}, True, (False, True)),
        ("it is<submit>", {}, False, (False, True)),
        ("the end</s>", {}, False, (False, True)),
        ("<request><Shout>a<call>", {"max_length": 4}, True, (True, True)),
        ("<request><Shout>a<call>", {"max_length": 400}, True, (False, False)),
    ],
)
def test_a_conversation_ends(
    make: Any, last: str, given: dict[str, Any], model_turn: bool, expected: tuple[bool, bool]
) -> None:
    environment, told = make(**given), history("ask", last)
    assert environment.task_end_check(told, model_turn=model_turn) == expected
    (same,) = environment.tasks_end_check([told], model_turn=model_turn)
    assert (same.truncated, same.completed) == expected
    if same.completed:
        assert environment.task_end_check(same) == (False, False)
        assert environment.step(same) is same
        assert len(same.text_spans) == 2


def test_answers_are_appended_and_cut(make: Any) -> None:
    environment = make(max_tool_reponse=7)
    told = environment.step(history("ask", "<request><Shout>a long word<call>"))
    assert told.last_text_segment == "A LO...<response>"
    assert told.system_spans == [True, False, True]


def test_tools_are_known_by_name(make: Any) -> None:
    environment = make(tools={"count": len})
    assert environment._answer("<request><count>four<call>") == "4"
    assert environment._answer("<request><Shout>four<call>") == "Tool error: 'Shout'"
    assert make(tools=None).tools == {}


def test_rewards_are_for_last_segments(make: Any) -> None:
    environment = make(reward_fn=lambda texts, plus: [len(text) + plus for text in texts])
    first, second = environment.compute_reward([history("ask", "four"), history("ask", "six--")], plus=1)
    assert (first.reward, second.reward) == (5, 6)
    with pytest.raises(ValueError, match="gave 1 rewards for 2 texts"):
        make(reward_fn=lambda texts: [1]).compute_reward([first, second])
    with pytest.raises(ValueError, match="`reward_fn=None`"):
        make().compute_reward([first])


def test_a_run_stops_after_its_turns(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make(reward_fn=lambda texts: [1.0] * len(texts), max_turns=2, prompt=None)
    monkeypatch.setattr(
        environment,
        "generate",
        lambda told: [
            each.append_segment("<request><Shout>a<call>", TOKENS, system=False) or each for each in told
        ],
    )
    _, responses, masks, rewards, (told,) = environment.run(["ask"])
    assert told.text == "ask" + "<request><Shout>a<call>A<response>" * 2
    assert (told.completed, rewards) == (False, [1.0])
    assert responses[0].shape == masks[0].shape


def test_generating_leaves_what_it_was_given(make: Any) -> None:
    class Never(StringStoppingCriteria):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> bool:
            type(self).calls += 1
            return False

    own = StoppingCriteriaList([Never([], None)])
    options = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0, "stopping_criteria": own}
    environment = make(generation_kwargs=options)
    (answer,) = environment._generate_batched([TOKENS + 8])
    assert answer.shape == (3,)
    assert Never.calls == 3
    assert len(own) == 1
    assert environment.tokenizer.padding_side == "right"
    assert environment._generate_batched([]) == []


def test_an_answer_ends_where_a_string_stops_it(make: Any) -> None:
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    environment = make(generation_kwargs=options)
    queries = [torch.tensor([11, 24, 35]), torch.tensor([70, 61])]
    whole = environment._generate_batched(queries)
    environment.call_token = environment.tokenizer.decode(whole[0][1])
    stopped = environment._generate_batched(queries)
    texts = [environment.tokenizer.decode(answer) for answer in stopped]
    assert environment.call_token in texts[0]
    assert len(stopped[0]) <= 2
    assert torch.equal(stopped[0], whole[0][: len(stopped[0])])
    assert torch.equal(stopped[1], whole[1][: len(stopped[1])])
