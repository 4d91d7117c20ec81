"""Conversations between a language model and tools, and their rewards.

The model calls a tool by `<request><Tool>query<call>`. The environment appends the tool's answer and
`<response>`. The model ends the conversation with `<submit>`.

Mirrors `trl/environment/base_environment.py` of TRL 0.7.11.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import StoppingCriteria, StoppingCriteriaList

from compat.errors import ArgumentError
from compat.trl.import_utils import is_rich_available

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedTokenizerBase


class StringStoppingCriteria(StoppingCriteria):
    """Ends a generation once the new text of each sequence in the batch contains a stop string.

    Args:
        stop_strings: the strings.
        tokenizer: decodes tokens.

    Attributes:
        generated_tokens: for each sequence, the number of new tokens up to its stop string; if it has none,
            one more than the number of new tokens at the last call.
    """

    def __init__(self, stop_strings: Iterable[str], tokenizer: Any) -> None:
        self.stop_strings = stop_strings
        self.tokenizer = tokenizer
        self.first_call = True

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> bool:
        """Whether all are done; a plain bool, which every transformers release applies to the whole batch.

        Args:
            input_ids: (batch, length), prompts and all new tokens; one new token at the first call.
            scores: ignored.
            kwargs: ignored.
        """
        if self.first_call:
            self.first_call = False
            self.start_length = input_ids.shape[-1] - 1
            self.generated_tokens = [1] * input_ids.shape[0]
        texts = self.tokenizer.batch_decode(input_ids[:, self.start_length :])
        done = [any(stop in text for stop in self.stop_strings) for text in texts]
        self.generated_tokens = [
            count + (not is_done) for count, is_done in zip(self.generated_tokens, done, strict=True)
        ]
        self.first_call = all(done)
        return self.first_call


class TextHistory:
    """One conversation: its text and its tokens, and which of them the model has generated.

    Args:
        text: the text of the first segment.
        tokens: its tokens, (length,).
        system: whether it comes from the system or the user, not from the model.

    Attributes:
        text: all segments.
        text_spans: start and end of each segment in `text`.
        tokens: all tokens, (length,).
        token_spans: start and end of each segment in `tokens`.
        token_masks: (length,), 1 for the model's tokens and 0 for others.
        system_spans: for each segment, whether it does not come from the model.
        completed: whether the conversation has ended.
        truncated: whether it was ended because of its length.
        reward: the reward of the model.
    """

    def __init__(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        self.text = ""
        self.text_spans: list[tuple[int, int]] = []
        self.tokens = self.token_masks = torch.empty(0, dtype=torch.long, device=tokens.device)
        self.token_spans: list[tuple[int, int]] = []
        self.system_spans: list[bool] = []
        self.completed = self.truncated = False
        self.reward: Any = 0.0
        self.prompt_color = "black on grey85"
        self.system_color = "black on cyan3"
        self.model_color = "black on deep_sky_blue1"
        self.reward_color = "black on plum1"
        self.append_segment(text, tokens, system=system)

    def append_segment(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        """Append a segment; the arguments are those of the class.

        Raises:
            ValueError: the text or the tokens are empty.
        """
        if not len(text) or not len(tokens):
            msg = (
                f"`text={text!r}`, `tokens={tokens}`: Can't append empty text or token list to history. "
                "Leave the segment out."
            )
            raise ArgumentError(msg)
        mask = torch.zeros_like(tokens) if system else torch.ones_like(tokens)
        self.text_spans.append((len(self.text), len(self.text) + len(text)))
        self.token_spans.append((len(self.tokens), len(self.tokens) + len(tokens)))
        self.system_spans.append(system)
        self.text += text
        self.tokens = torch.cat((self.tokens, tokens))
        self.token_masks = torch.cat((self.token_masks, mask))

    def complete(self, truncated: bool = False) -> None:
        """Mark the conversation as ended; with `truncated`, because of its length."""
        self.completed = True
        self.truncated = truncated

    @property
    def last_text_segment(self) -> str:
        """The text of the last segment."""
        return self.text[slice(*self.text_spans[-1])]

    def split_query_response_tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tokens of the first segment, the tokens after it, and the mask of the latter."""
        end = self.token_spans[0][1]
        return self.tokens[:end], self.tokens[end:], self.token_masks[end:]

    def show_text(self, show_legend: bool = False) -> None:
        """Print the text in colours; warn if rich is not installed."""
        if not self._can_show("text"):
            return
        spans = [self.text[slice(*span)] for span in self.text_spans]
        self._show(zip(spans, self._colours(), strict=True), show_legend=show_legend)

    def show_tokens(self, tokenizer: PreTrainedTokenizerBase, show_legend: bool = False) -> None:
        """Print the tokens in colours, as `tokenizer` names them; requires rich, like `show_text`."""
        if not self._can_show("tokens"):
            return
        pieces = [
            (piece, colour)
            for span, colour in zip(self.token_spans, self._colours(), strict=True)
            for token in self.tokens[slice(*span)].tolist()
            for piece, colour in ((tokenizer.convert_ids_to_tokens(token), colour), (" ", ""))
        ]
        self._show(pieces, show_legend=show_legend)

    def show_colour_legend(self) -> None:
        """Print the meaning of the colours; requires rich, like `show_text`."""
        if not self._can_show("colour legend"):
            return
        meanings = (
            ("Prompt", self.prompt_color),
            ("System", self.system_color),
            ("Model", self.model_color),
            ("Reward", self.reward_color),
        )
        between = [piece for meaning in meanings for piece in (("|", ""), meaning)][1:]
        _print_in_colours([("\n\n(Colour Legend: ", ""), *between, (")", "")])

    def _colours(self) -> list[str]:
        own = [self.system_color if system else self.model_color for system in self.system_spans]
        return [self.prompt_color, *own[1:]]

    def _show(self, pieces: Iterable[tuple[str, str]], *, show_legend: bool) -> None:
        _print_in_colours([*pieces, (f"\n\nReward: {self.reward}", self.reward_color)])
        if show_legend:
            self.show_colour_legend()

    @staticmethod
    def _can_show(what: str) -> bool:
        if not is_rich_available():
            warnings.warn(f"install rich to display {what}", stacklevel=3)
        return is_rich_available()


def _print_in_colours(pieces: Iterable[tuple[str, str]]) -> None:
    import rich
    from rich.text import Text

    rich.print(Text.assemble(*pieces))


class TextEnvironment:
    """Runs conversations of a model with tools about tasks, and rewards the final answers.

    Args:
        model: a model with a value head.
        tokenizer: the tokenizer of the model.
        tools: name → a function from a query to an answer; tools of a list are named by their classes.
        reward_fn: maps the last segments of all conversations to a reward for each.
        prompt: the text before each task.
        max_turns: the maximum number of model turns in a conversation.
        max_tool_reponse: the maximum number of characters of a tool's answer; longer ones are truncated.
        max_length: the maximum number of tokens of a conversation.
        generation_kwargs: passed to the model's `generate`.
    """

    request_token = "<request>"  # noqa: S105 (no password)
    call_token = "<call>"  # noqa: S105
    response_token = "<response>"  # noqa: S105
    submit_token = "<submit>"  # noqa: S105

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        tools: dict[str, Callable[[str], str]] | list[Any] | None = None,
        reward_fn: Callable[..., Any] | None = None,
        prompt: str | None = None,
        max_turns: int = 4,
        max_tool_reponse: int = 100,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.tools = tools if isinstance(tools, dict) else {type(tool).__name__: tool for tool in tools or ()}
        self.reward_fn = reward_fn
        self.max_length = max_length
        self.max_turns = max_turns
        self.max_tool_response = max_tool_reponse
        self.generation_kwargs = {} if generation_kwargs is None else generation_kwargs
        self.is_encoder_decoder = hasattr(model, "is_encoder_decoder")

    @property
    def current_device(self) -> torch.device:
        """The current device of the model."""
        device: torch.device = extract_model_from_parallel(self.model).pretrained_model.device
        return device

    def run(
        self, queries: list[str], **rewards_kwargs: object
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[Any], list[TextHistory]]:
        """Run a conversation about each task.

        Args:
            queries: the tasks.
            rewards_kwargs: passed to `reward_fn`.

        Returns:
            For each conversation: the tokens of the task, all further tokens, their mask (1 for the model's
            tokens), the reward, and the conversation itself. `PPOTrainer.step` takes the first four.
        """
        tasks = [(self.prompt or "") + query for query in queries]
        histories = [TextHistory(task, self._tokens(task), system=True) for task in tasks]
        for _ in range(self.max_turns):
            if all(history.completed for history in histories):
                break
            histories = self.tasks_end_check(self.generate(histories))
            histories = [self.step(history) for history in histories]
            histories = self.tasks_end_check(histories, model_turn=False)
        self.compute_reward(histories, **rewards_kwargs)
        split = [history.split_query_response_tokens() for history in histories]
        query_tokens, responses, masks = map(list, zip(*split, strict=True))
        return query_tokens, responses, masks, [history.reward for history in histories], histories

    def _tokens(self, text: str) -> torch.Tensor:
        tokens: torch.Tensor = self.tokenizer(text, return_tensors="pt").input_ids[0]
        return tokens.to(self.current_device)

    def step(self, history: TextHistory) -> TextHistory:
        """Append the answer of the tool that the model has called, unless the conversation has ended."""
        truncated, ended = self.task_end_check(history)
        if ended:
            history.complete(truncated=truncated)
        if history.completed:
            return history
        answer = self._answer(history.last_text_segment)
        if len(answer) > self.max_tool_response:
            answer = answer[: self.max_tool_response - 3] + "..."
        answer += self.response_token
        history.append_segment(answer, self._tokens(answer), system=True)
        return history

    def _answer(self, request: str) -> str:
        tool, query = self.parse_tool_call(request)
        if tool is None or query is None:
            return f"Unknown tool call: {request}"
        try:
            # The error for an unknown tool is only its name, like the KeyError of a dict.
            return str(self.tools[tool](query))
        except Exception as error:  # noqa: BLE001 (the model is told, and may do better)
            return f"Tool error: {error}"

    def parse_tool_call(self, text: str) -> tuple[str | None, str | None]:
        """Return tool and query of `<request><tool>query<call>`; None for both if there is no such call."""
        call = re.search(f"{self.request_token}(.*?){self.call_token}", text, re.DOTALL)
        name = call and re.search("<(.*?)>", call[1])
        if call is None or name is None:
            return None, None
        return name[1], call[1].partition(">")[2]

    def compute_reward(self, histories: list[TextHistory], **reward_kwargs: object) -> list[TextHistory]:
        """Reward each conversation by its last segment.

        Raises:
            ValueError: there is no `reward_fn`, or it returns a different number of rewards.
        """
        if self.reward_fn is None:
            msg = (
                "`reward_fn=None`: nothing tells what an answer is worth. Give a function of a list of texts."
            )
            raise ArgumentError(msg)
        rewards = self.reward_fn([history.last_text_segment for history in histories], **reward_kwargs)
        if len(rewards) != len(histories):
            msg = (
                f"`reward_fn={self.reward_fn}`: it gave {len(rewards)} rewards for {len(histories)} texts. "
                "Return one for each text."
            )
            raise ArgumentError(msg)
        for history, reward in zip(histories, rewards, strict=True):
            history.reward = reward
        return histories

    def generate(self, histories: list[TextHistory]) -> list[TextHistory]:
        """Generate a model turn in each conversation that has not ended."""
        active = [history for history in histories if not history.completed]
        responses = self._generate_batched([history.tokens for history in active])
        texts = self.tokenizer.batch_decode(responses)
        for history, text, tokens in zip(active, texts, responses, strict=True):
            history.append_segment(text, tokens, system=False)
        return histories

    def tasks_end_check(self, histories: list[TextHistory], model_turn: bool = True) -> list[TextHistory]:
        """Mark the conversations that have ended; `model_turn` as in `task_end_check`."""
        for history in histories:
            truncated, ended = self.task_end_check(history, model_turn=model_turn)
            if ended:
                history.complete(truncated=truncated)
        return histories

    def task_end_check(self, history: TextHistory, model_turn: bool = True) -> tuple[bool, bool]:
        """Check whether a conversation ends now.

        It ends if it is too long, if it contains the end-of-text token, if the model has submitted, or if the
        model's turn has called no tool.

        Args:
            history: the conversation.
            model_turn: whether the last turn is the model's.

        Returns:
            Whether it is truncated, and whether it ends; False for both if it has already ended.
        """
        if history.completed:
            return False, False
        if self.max_length is not None and len(self.tokenizer(history.text).input_ids) > self.max_length:
            return True, True
        last, eos = history.last_text_segment, self.tokenizer.eos_token
        has_called = self.request_token in last and self.call_token in last
        is_over = eos is not None and eos in history.text
        return False, is_over or self.submit_token in last or (model_turn and not has_called)

    def _generate_batched(
        self,
        query_tensors: list[torch.Tensor],
        batch_size: int = 16,
        pad_to_multiple_of: int | None = None,
    ) -> list[torch.Tensor]:
        """Generate a continuation of each query, up to the first call or submission.

        Args:
            query_tensors: the tokens of each query, (length,).
            batch_size: the number of queries per call of the model.
            pad_to_multiple_of: the length of the padded queries is a multiple of it.
        """
        side = self.tokenizer.padding_side
        if not self.is_encoder_decoder:
            self.tokenizer.padding_side = "left"
        try:
            return [
                response
                for start in range(0, len(query_tensors), batch_size)
                for response in self._respond(query_tensors[start : start + batch_size], pad_to_multiple_of)
            ]
        finally:
            self.tokenizer.padding_side = side

    def _respond(self, queries: list[torch.Tensor], pad_to_multiple_of: int | None) -> list[torch.Tensor]:
        padded = self.tokenizer.pad(
            {"input_ids": queries, "attention_mask": [torch.ones_like(query) for query in queries]},
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors="pt",
        ).to(self.current_device)
        stop = StringStoppingCriteria([self.call_token, self.submit_token], self.tokenizer)
        criteria = StoppingCriteriaList([*self.generation_kwargs.get("stopping_criteria", ()), stop])
        options = {**self.generation_kwargs, "stopping_criteria": criteria}
        generated = extract_model_from_parallel(self.model).generate(**padded, **options)
        begin = 0 if self.is_encoder_decoder else padded["input_ids"].shape[1]
        # A decoder's first token is given, and displaces the last one if only the length has ended it.
        is_cut = self.is_encoder_decoder and not self._have_ended(generated, stop)
        longest = generated.shape[1] - begin - is_cut
        return [
            sequence[begin : begin + min(count, longest)]
            for sequence, count in zip(generated, stop.generated_tokens, strict=True)
        ]

    def _have_ended(self, generated: torch.Tensor, stop: StringStoppingCriteria) -> bool:
        has_eos = (generated == self.tokenizer.eos_token_id).any(dim=1)
        return stop.first_call or bool(has_eos.all())
