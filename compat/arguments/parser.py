"""`HfArgumentParser`: HF's parser, for the arguments of every generation and Lightning's flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import transformers

from compat.arguments.checks import nearest
from compat.arguments.fields import FIELDS, is_secret, shown_of_unknown
from compat.arguments.lightning import FLAGS
from compat.errors import ArgumentError, UnknownArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


def _number(text: str) -> float:
    """Convert text to an int if it is a whole number, else to a float."""
    number = float(text)
    return int(number) if number == int(number) else number


def _switch_or_word(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


READERS: dict[str, Callable[[str], Any]] = {
    "warmup_steps": _number,
    "include_num_input_tokens_seen": _switch_or_word,
    "half_precision_backend": str,
    "fp16_backend": str,
}
"""Option whose values have changed between generations → the function that parses one."""

LIGHTNING = "lightning"
SECTION = f"{LIGHTNING}."


class HfArgumentParser(transformers.HfArgumentParser):  # type: ignore[misc]
    """Parses command lines, dicts, JSON and YAML into dataclasses.

    Mirrors `transformers.HfArgumentParser`. Old names are options too, `--lightning.FLAG VALUE` gives one
    flag of Lightning's Trainer, and an unknown option raises an error with the nearest known name.

    Args:
        dataclass_types: the dataclasses to fill, as in `transformers.HfArgumentParser`; so are all others.
    """

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        super()._add_dataclass_arguments(dtype)
        # Switches that were on in transformers 4 had an option that turns them off. What has a constructor of
        # its own, and was put on ours later, has one release's names alone.
        names = {field.name for field in dataclasses.fields(dtype)}
        for name in sorted(names & getattr(dtype, "other_names", frozenset())):
            field = FIELDS[name]
            if field.kind.startswith("bool") and field.default is True:
                options = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
                self.add_argument(*options, dest=name, action="store_false", default=None)

        if hasattr(dtype, "other_names"):
            self._widen()

    def _widen(self) -> None:
        """Make options accept the values of every generation if the installed release accepts fewer."""
        for action in self._actions:
            if action.dest in READERS:
                action.type, action.choices = READERS[action.dest], None
            elif action.type is dict:
                # HF means the other half of "a dict or a text", whose order is that in which typing has met
                # this union first in the process.
                action.type = str

    def parse_args_into_dataclasses(
        self, args: Sequence[str] | None = None, return_remaining_strings: bool = False, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Parse a command line.

        Args:
            args: its words; those of the process if None.
            return_remaining_strings: whether unknown words are returned instead of refused.
            kwargs: the files that arguments may be read from, as in `transformers.HfArgumentParser`.

        Returns:
            An instance of each dataclass, then the other requested values.

        Raises:
            UnknownArgumentError: an unknown option, with the nearest known one.
        """
        *parsed, remaining = super().parse_args_into_dataclasses(
            args, return_remaining_strings=True, **kwargs
        )
        if return_remaining_strings:
            return (*parsed, remaining)
        self._refuse(remaining)
        return tuple(parsed)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Do the same as `argparse`, with the flags of Lightning's Trainer merged into one option."""
        words = gathered(sys.argv[1:] if args is None else args)
        parsed: tuple[Any, list[str]] = super().parse_known_args(words, namespace)
        return parsed

    def _refuse(self, words: Sequence[str]) -> None:
        known = [option for action in self._actions for option in action.option_strings]
        if words:
            msg = "\n".join(
                f"`{word}`: not used by any of {self._names()}. {nearest(word.partition('=')[0], known)}"
                for word in without_secrets(without_values(words))
            )
            raise UnknownArgumentError(msg)

    def _names(self) -> str:
        return ", ".join(getattr(kind, "__name__", str(kind)) for kind in self.dataclass_types)

    def parse_dict(self, args: dict[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a dict; JSON and YAML files go the same way.

        Args:
            args: argument → value. `lightning.FLAG` may stand for an entry of `lightning`.
            allow_extra_keys: whether unknown keys are ignored.

        Raises:
            UnknownArgumentError: an unknown key, with the nearest known one.
        """
        args = gathered_keys(args)
        known = [action.dest for action in self._actions]
        if unknown := [key for key in args if key not in known and not allow_extra_keys]:
            msg = "\n".join(
                f"`{shown_of_unknown(key, args[key])}`: not used by any of {self._names()}. "
                f"{nearest(key, known)}"
                for key in sorted(unknown)
            )
            raise UnknownArgumentError(msg)
        parsed: tuple[Any, ...] = super().parse_dict(args, allow_extra_keys=allow_extra_keys)
        return parsed

    def typed(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the values that a command line sets, without defaults.

        Args:
            words: the words of the command line.

        Returns:
            Argument → value.

        Raises:
            UnknownArgumentError: an unknown option.
        """
        for action in self._actions:
            action.default = argparse.SUPPRESS
        namespace, remaining = self.parse_known_args(words)
        self._refuse(remaining)
        return dict(vars(namespace))


class LightningFlags(argparse.Action):
    """The option `--lightning JSON`, and `--lightning.FLAG VALUE` for each flag, of HF's own parser.

    HF's parser creates an option for each field of a dataclass, with the field's metadata.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **{**kwargs, "nargs": "?", "type": str, "metavar": "VALUE"})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the value to the existing flags."""
        if values is None and option_string == f"--{LIGHTNING}":
            raise argparse.ArgumentError(self, "expected one argument")
        before = getattr(namespace, self.dest, None)
        words = [f"--{LIGHTNING}", before] if before else []
        words += [str(option_string), *([] if values is None else [values])]
        setattr(namespace, self.dest, gathered(words)[-1])


FLAGS_OF_LIGHTNING = {
    "help": "Flags of Lightning's Trainer as JSON; --lightning.FLAG VALUE gives a single one.",
    "aliases": [f"--{SECTION}{flag}" for flag in FLAGS],
    "action": LightningFlags,
}
"""Metadata of the field `lightning`."""


def without_values(words: Sequence[str]) -> Iterator[str]:
    """Yield a command line without the words after an option, which are its values."""
    is_value = False
    for word in words:
        is_option = word.startswith("--")
        if is_option or not is_value:
            yield word
        is_value = is_option or is_value


def without_secrets(words: Iterable[str]) -> Iterator[str]:
    """Yield a command line without secrets, for an error."""
    follows_secret = False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = option.startswith("--") and is_secret(option.strip("-").replace("-", "_"))
        if secret and equals:
            yield f"{option}=<secret>"
        else:
            yield "<secret>" if follows_secret and not option.startswith("--") else word
        follows_secret = secret and not equals


def gathered(words: Sequence[str]) -> list[str]:
    """Merge all `--lightning.FLAG VALUE` of a command line into its `--lightning JSON`.

    Raises:
        ArgumentError: a flag without a value.
    """
    kept: list[str] = []
    flags: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name == f"--{LIGHTNING}" and isinstance(
            whole := _read(value if equals else (queue or [""])[0]), dict
        ):
            flags.update(whole)
            queue = queue if equals else queue[1:]
            continue
        if not name.startswith(f"--{SECTION}"):
            kept.append(word)
            continue
        if not equals:
            has_value = bool(queue) and not queue[0].startswith("--")
            value = queue.pop(0) if has_value else _alone(word)
        flags[name.removeprefix(f"--{SECTION}")] = _read(value)
    return [*kept, f"--{LIGHTNING}", json.dumps(flags)] if flags else kept


def _alone(word: str) -> str:
    name = word.removeprefix(f"--{SECTION}")
    if name not in FLAGS:
        msg = f"`{word}`: no value. Give `{word} VALUE`. {nearest(name, FLAGS)}"
        raise ArgumentError(msg)
    # As with HF's own switches.
    return "true"


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        words = {"True": True, "False": False, "None": None}
        return words.get(text, text)


def gathered_keys(args: Mapping[str, Any]) -> dict[str, Any]:
    """Merge all keys `lightning.FLAG` of a dict into its `lightning` entry."""
    flags = {key.removeprefix(SECTION): value for key, value in args.items() if key.startswith(SECTION)}
    kept = {key: value for key, value in args.items() if not key.startswith(SECTION)}
    if not flags:
        return kept
    return {**kept, LIGHTNING: {**as_flags(kept.get(LIGHTNING)), **flags}}


def as_flags(value: Any) -> dict[str, Any]:
    """Convert `lightning=value` to flags by name.

    Raises:
        ArgumentError: the value is neither a dict nor JSON of one.
    """
    found = _read(value) if isinstance(value, str) else value or {}
    if not isinstance(found, dict):
        given = shown_of_unknown(LIGHTNING, value)
        msg = f"`{given}`: flags by name are wanted. Give {{'profiler': 'simple'}}."
        raise ArgumentError(msg)
    return found
