"""The parser of `compat fit`: Lightning's groups and HF's flat arguments; errors name the remedy."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import itertools
import json
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from compat.arguments.fields import FIELDS, is_secret
from compat.arguments.names import native_defaults
from compat.arguments.parser import HfArgumentParser
from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.cli.lightning.data_options import DataFiles
from compat.cli.lightning.handling import HANDLING, Part
from compat.cli.lightning.sentences import sentence
from compat.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class HFArgumentParser(LightningArgumentParser):
    """Lightning's parser without `args`, which the command builds from HF's flat arguments.

    Attributes:
        linked: HF's arguments that are linked to other settings, and their defaults.
        asked: the parser of the given command, if this is the parser of all commands.
    """

    asked: HFArgumentParser | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.linked: dict[str, Any] = {}
        # An abbreviated HF argument would be parsed differently from the full one.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        defaults = native_defaults(Seq2SeqTrainingArguments)
        for name in (source,) if isinstance(source, str) else source:
            if name in FIELDS:
                self.linked[name] = defaults.get(name, FIELDS[name].default)
                # A link needs a value, even if none is given.
                own = next(action for action in self._actions if action.dest == name)
                if own.default is argparse.SUPPRESS:
                    own.default = self.linked[name]
        super().link_arguments(source, target, *args, **kwargs)

    @override
    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_subclass_arguments(*args, **{**kwargs, "skip": {"args", *kwargs.get("skip", ())}})

    @override
    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_class_arguments(*args, **{**kwargs, "skip": {"args", *kwargs.get("skip", ())}})

    def add_hf_arguments(self) -> None:
        """Add every HF argument, of all releases, under its flat name."""
        group = self.add_argument_group("Arguments of Hugging Face's Trainer")
        for name in FIELDS:
            handling = HANDLING[name]
            how = "not here" if handling.part is Part.REFUSED else handling.part.value
            text = ": ".join(filter(None, (how, handling.note))).replace("%", "%%")
            group.add_argument(f"--{name}", type=Any, default=argparse.SUPPRESS, help=text)

    @override
    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the settings as text without secrets, because it is printed and saved next to the model."""
        text: str = super().dump(*args, **kwargs)
        settings = yaml.safe_load(text)
        cleared = _without_secrets(settings)
        return text if cleared == settings else yaml.safe_dump(cleared, sort_keys=False, allow_unicode=True)

    def known(self) -> list[str]:
        """Return the names of all options, and of the options of the default model and data classes."""
        own = {option for action in self._actions for option in action.option_strings}
        return sorted({*own, *(f"--{key}.{name}" for key, names in STANDINS.items() for name in names)})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            # An internal parser of jsonargparse: its outer parser names the key.
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self.asked or self
        _end(str(message), parser.known(), parser.prog.replace(" [options]", ""))


STANDINS = {
    "model": ("name", "auto", "num_labels", "class_path"),
    "data": tuple(name for name in inspect.signature(DataFiles).parameters),
}
"""Key → the options of the class that is used if none is named."""


def _end(message: str, known: Sequence[str], prog: str) -> NoReturn:
    """Exit with an error about the command line."""
    text = sentence(message, known, prog)
    say(prog, f"{text}\n(`{prog} --help` shows the arguments.)")
    raise SystemExit(2)


def _without_secrets(settings: object) -> Any:
    """Return settings without entries that are named like secrets, so that they can be loaded again."""
    if isinstance(settings, dict):
        return {
            name: _without_secrets(value)
            for name, value in settings.items()
            if value is None or not is_secret(str(name))
        }
    return [_without_secrets(item) for item in settings] if isinstance(settings, list) else settings


def split(words: Sequence[str], own: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Split a command line into HF's flat arguments and the rest.

    Args:
        words: the command line.
        own: names that are not HF's here, although they look like HF's.
    """
    hf: list[str] = []
    rest: list[str] = []
    current = rest
    for word in words:
        if word.startswith("-") and not _is_number(word):
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            is_hf = word.startswith("--") and name not in own and _is_hf(name)
            current = hf if is_hf else rest
        current.append(word)
    return hf, rest


def _is_hf(name: str) -> bool:
    return name in FIELDS or (name.startswith("no_") and name[3:] in FIELDS)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def typed(words: Sequence[str], command: str) -> dict[str, Any]:
    """Parse HF's arguments of a command line, as HF scripts do.

    Args:
        words: HF's part of the command line.
        command: the name of the command, for errors.

    Returns:
        Argument → value.
    """
    return _Flat(Seq2SeqTrainingArguments, prog=command, add_help=False).typed(words)


class _Flat(HfArgumentParser):
    """The parser of HF's flat arguments; it reports errors like the command."""

    @override
    def error(self, message: str) -> NoReturn:
        _end(message, [option for action in self._actions for option in action.option_strings], self.prog)


def as_words(given: dict[str, Any]) -> Iterator[str]:
    """Yield HF's arguments as command-line words for Lightning's parser."""
    for name, value in given.items():
        yield f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def files_in(words: Sequence[str]) -> Iterator[Any]:
    """Yield the settings of the files that a command line names; unreadable ones are reported elsewhere."""
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option not in {"-c", "--config"}:
            continue
        with contextlib.suppress(OSError, yaml.YAMLError), open(value if equals else after) as file:
            yield yaml.safe_load(file)
