"""`compat explain`: shows how HF arguments are translated to Lightning, before anything runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from compat.arguments.checks import nearest
from compat.arguments.fields import FIELDS, shown
from compat.cli import named, single
from compat.cli.run import run_script
from compat.cli.terminal import NOTE, say
from compat.errors import CompatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compat.translate import LightningPlan, Setting

USAGE = "compat explain [options] [NAME ... | [FILE] [HF FLAGS] [-- SCRIPT ARGS]]"

EPILOG = """\
examples:
  compat explain warmup_ratio lightning.profiler
  compat explain --learning_rate 2e-5 --bf16 --evaluation_strategy steps
  compat explain args.yaml --max_steps 100
  compat explain runs/checkpoint-500/training_args.bin
  compat explain --fsdp full_shard --devices 8 --accelerator cuda
  compat explain --accelerate-config fsdp.yaml --learning_rate 2e-5
  compat explain -- train.py --output_dir out
"""

HEADINGS = ("HF argument", "value", "becomes", "why")

MORE = "It is the same on every device; --all shows the whole plan for this one."
"""Printed below a single argument."""

PIPED_WIDTH = 1000
"""The length of a line that no terminal wraps."""

ONLY_PLANS = ("accelerator", "devices", "num_nodes", "accelerate_config")
"""Options that say something of a machine or a job."""

NAMES = frozenset({*FIELDS, "lightning"})


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "explain",
        help="show what HF arguments become under Lightning, and why",
        description="Show what HF arguments become under Lightning, and why. Arguments come from flags as "
        "HF scripts take them, from a file (JSON, YAML or a saved training_args.bin), or from a script, "
        "which is run until it makes its arguments. Names alone, or a single flag, are answered at once.",
        usage=USAGE,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="show also what has its default")
    parser.add_argument("--format", choices=tuple(FORMATS), default="table", help="what to print")
    parser.add_argument("--accelerator", help="explain for devices of this kind, whatever this machine has")
    parser.add_argument("--devices", type=int, help="explain for so many devices on a machine")
    parser.add_argument("--num_nodes", "--num-nodes", type=int, help="… and so many machines")
    parser.add_argument(
        "--accelerate-config",
        "--accelerate_config",
        metavar="FILE",
        help="explain a job that `accelerate launch --config_file FILE` starts",
    )
    parser.set_defaults(main=main, takes_more=True)


def main(namespace: argparse.Namespace) -> int:
    """Print the plan.

    Returns:
        0, or 2 with the problem on stderr.
    """
    try:
        if namespace.behind is None and named.are_names(namespace.more):
            return _look_up(namespace)
        if (setting := _single(namespace)) is not None:
            _show(HEADINGS, [row(setting)], below=MORE)
            return 0
        from compat.planning import plan

        with warnings.catch_warnings():
            # The table shows old names.
            warnings.simplefilter("ignore", FutureWarning)
            made = plan(
                gather(namespace.more, namespace.behind),
                accelerator=namespace.accelerator,
                devices=namespace.devices,
                num_nodes=namespace.num_nodes,
                accelerate_config=namespace.accelerate_config,
            )
    except CompatError as error:
        say("compat explain", error)
        return 2
    with contextlib.suppress(BrokenPipeError):
        FORMATS[namespace.format](made, show_all=namespace.all)
    return 0


def _single(namespace: argparse.Namespace) -> Setting | None:
    """Return the decision on the only argument of a command line, if that is all it takes to print it."""
    is_plain = namespace.format == "table" and not namespace.all and namespace.behind is None
    if not is_plain or any(getattr(namespace, name) is not None for name in ONLY_PLANS):
        return None
    return single.explained(namespace.more)


def _look_up(namespace: argparse.Namespace) -> int:
    """Print what becomes of the arguments that are named, whatever the machine."""
    given = [f"--{name}" for name in ONLY_PLANS if getattr(namespace, name) is not None]
    if given or namespace.format == "python":
        names = ", ".join(given or ["--format python"])
        msg = f"{names}: for a plan alone. Give values, as `--{namespace.more[0]} VALUE`, or leave it out."
        raise CompatError(msg)
    found = named.rows(namespace.more)
    if namespace.format == "json":
        print(json.dumps([dict(zip(named.KEYS, row, strict=True)) for row in found], indent=2))
    else:
        _show(named.HEADINGS, found)
    return 0


def gather(words: Sequence[str], script: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the arguments of a command line; flags override a file, and both override a script.

    Args:
        words: a file, and HF's flags.
        script: a script with its arguments, if there is one.

    Returns:
        Argument → value.

    Raises:
        CompatError: an unknown flag, or a file that cannot be read.
    """
    words = list(words)
    if script is not None:
        return {**from_script(script), **gather(words)}
    files = [words.pop(0)] if words and not words[0].startswith("-") else []
    given = from_file(files[0]) if files else {}
    from compat.arguments.parser import HfArgumentParser, as_flags, gathered_keys
    from compat.arguments.seq2seq import Seq2SeqTrainingArguments

    parser = HfArgumentParser(Seq2SeqTrainingArguments, prog="compat explain", usage=USAGE, add_help=False)
    typed = parser.typed(words)
    # Flag by flag, so that other flags of a file are kept.
    flags = {f"lightning.{name}": value for name, value in as_flags(typed.pop("lightning", None)).items()}
    return gathered_keys({**given, **typed, **flags})


def from_file(path: str) -> dict[str, Any]:
    """The arguments in a file.

    Args:
        path: JSON, YAML, or what a Trainer saves as `training_args.bin`.

    Raises:
        CompatError: the file does not exist, or holds no arguments.
    """
    if not os.path.isfile(path):
        msg = (
            f"`{path}`: no such file or argument. Give JSON, YAML or a training_args.bin, flags that begin "
            f"with --, or names of arguments. {nearest(path, FIELDS)}"
        ).rstrip()
        raise CompatError(msg)
    if path.endswith(".bin"):
        return _from_saved(path)
    import yaml

    from compat.arguments.parser import gathered_keys

    try:
        with open(path, encoding="utf-8") as file:
            # JSON proper first: YAML reads 1e-5 as text.
            loaded = json.load(file) if path.endswith(".json") else yaml.safe_load(file)
    except (ValueError, yaml.YAMLError) as error:
        msg = f"`{path}`: neither JSON nor YAML ({error}). Give argument: value, a line each."
        raise CompatError(msg) from error
    if not isinstance(loaded, dict):
        msg = f"`{path}`: holds no arguments by name. Give argument: value, a line each."
        raise CompatError(msg)
    return known_only(gathered_keys(loaded))


def known_only(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments among `given`: a script's file may have others."""
    known = {name: value for name, value in given.items() if name in NAMES}
    for name in given.keys() - known.keys():
        guess = nearest(name, FIELDS)
        say("compat explain", f"`{name}`: not a training argument; passed over. {guess}", NOTE)
    return known


def _from_saved(path: str) -> dict[str, Any]:
    from compat.arguments.names import native_defaults
    from compat.arguments.seq2seq import Seq2SeqTrainingArguments
    from compat.checkpoint.safe_unpickler import read_arguments

    saved = read_arguments(path)
    defaults = native_defaults(Seq2SeqTrainingArguments)
    return {name: saved[name] for name in NAMES & saved.keys() if saved[name] != defaults.get(name)}


class _MadeError(BaseException):
    """Ends a script at the point where it has its arguments; no `except Exception` stops it."""

    def __init__(self, kind: type, given: dict[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        self.given = given


def from_script(words: Sequence[str]) -> dict[str, Any]:
    """Return the first arguments that a script creates; the script is run up to that point.

    Args:
        words: the script and its arguments, as for `compat run`.

    Raises:
        CompatError: the script does not exist, or ends without creating any.
    """
    if not words or not os.path.exists(words[0]):
        msg = f"`{words[0] if words else '--'}`: no such script. Give its path behind `--`."
        raise CompatError(msg)
    from compat.arguments.names import native_defaults
    from compat.arguments.training import TrainingArguments
    from compat.install import install, uninstall

    def stop(kind: type, given: dict[str, Any]) -> None:
        raise _MadeError(kind, given)

    install()
    TrainingArguments.on_given = stop
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run_script(words[0], words[1:])
    except _MadeError as made:
        from compat.translate.setting import plain

        defaults = {**native_defaults(made.kind), **native_defaults(TrainingArguments)}
        changed = {
            n: v for n, v in made.given.items() if v is not None and plain(v) != plain(defaults.get(n))
        }
        for name in changed.keys() - NAMES:
            where = f"left to the own code of {made.kind.__name__}"
            say("compat explain", f"`{shown(name, changed[name])}`: {where}.", NOTE)
        return {name: value for name, value in changed.items() if name in NAMES}
    finally:
        TrainingArguments.on_given = None
        uninstall()
    msg = f"`{words[0]}`: ended without making TrainingArguments. Give the flags themselves."
    raise CompatError(msg)


def print_table(made: LightningPlan, *, show_all: bool) -> None:
    """Print a plan as text: with the width and colors of a terminal, or as plain lines elsewhere."""
    _show(
        HEADINGS,
        list(map(row, made.settings if show_all else made.changed())),
        above=headline(made),
        below="" if show_all else "What has its default is left out; --all shows it.",
    )


def _show(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, above: str = "", below: str = ""
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # One line per row if another program reads the output.
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, style in zip(headings, ("cyan", "green", "magenta", ""), strict=True):
        table.add_column(heading, style=style, overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    if above:
        console.print(Text(above, style="bold"), Text(), sep="\n")
    console.print(table)
    if below:
        console.print(Text(f"\n{below}", style="dim"))


def headline(made: LightningPlan) -> str:
    """A plan in one line."""
    flags = made.flags
    count = f"{flags['devices']} devices: " if flags["devices"] != 1 else ""
    nodes = f" on {flags['num_nodes']} machines" if flags["num_nodes"] != 1 else ""
    return (
        f"lightning.pytorch.Trainer on {count}{flags['accelerator']}{nodes}, strategy {made.strategy}, "
        f"precision {made.precision}"
    )


def row(setting: Setting) -> tuple[str, str, str, str]:
    """One decision as the cells of a table."""
    from compat.translate.setting import plain

    if not setting.field:
        return ("—", "", setting.outcome, setting.note)
    value = plain(setting.value)
    text = value if isinstance(value, str) else json.dumps(value)
    return (setting.field, text, setting.outcome, setting.note)


def print_json(made: LightningPlan, *, show_all: bool) -> None:
    """Print a plan for a program."""
    plan = made.to_dict()
    if not show_all:
        plan["provenance"] = [entry for entry in plan["provenance"] if entry["changed"]]
    print(json.dumps(plan, indent=2))


def print_source(made: LightningPlan, *, show_all: bool) -> None:
    """Print a Lightning script that trains the same way."""
    print(made.to_source(), end="")


FORMATS = {"table": print_table, "json": print_json, "python": print_source}
"""Value of `--format` → the function that prints it."""
