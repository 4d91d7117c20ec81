"""`compat run script.py args…`: run a script as python would, with Lightning under its Trainer."""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
import zipfile
from typing import TYPE_CHECKING

from compat.cli.terminal import NOTE, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "run",
        help="run an unedited Hugging Face script on Lightning",
        description="Run a script that imports from transformers, with Lightning under its Trainer. "
        "Arguments after the script are the script's own.",
        allow_abbrev=False,
    )
    parser.add_argument("--quiet", action="store_true", help="do not print what became of the arguments")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what became of the arguments, and stop where training would begin",
    )
    parser.add_argument(
        "--devices",
        type=int,
        help="start the script for so many devices, a process on each; for each GPU where it is not given",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error in the arguments was raised"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module, as in python -m")
    parser.add_argument(
        "script",
        metavar="SCRIPT",
        help="the script, a folder with a __main__.py, or a module with -m",
    )
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's arguments")
    parser.set_defaults(main=main, options=tuple(parser._option_string_actions))


def main(namespace: argparse.Namespace) -> int:
    """Run the script in this process.

    Returns:
        0; a script that ends otherwise ends this process as it would have ended its own.
    """
    if not namespace.module and not os.path.exists(namespace.script):
        say("compat run", f"`{namespace.script}`: no such script. Give its path, or a module with -m.")
        return 2
    from compat.upstream.collector import paused

    with paused():
        from compat.errors import ArgumentError
        from compat.install import install
        from compat.upstream import launch, process, started

    # Started without `compat run`, the other processes would train under HF.
    process.command[:] = [sys.executable, "-m", "compat", *sys.argv[1:]]
    process.is_told = namespace.devices is not None
    started.join()
    try:
        launch.launch(namespace.devices or 1)
    except ArgumentError as error:
        say("compat run", error)
        return 2
    install()
    _replace_trl(namespace.script, as_module=namespace.module)
    if not namespace.quiet or namespace.dry_run:
        from compat.trainer import Trainer

        Trainer.announces_plan = True
        Trainer.stops_before_training = namespace.dry_run
    # HF collects garbage when a training starts: none of it lies among what is loaded by now.
    gc.freeze()
    run_script(
        namespace.script, namespace.args, as_module=namespace.module, with_traceback=namespace.traceback
    )
    return 0


def _replace_trl(script: str, *, as_module: bool) -> None:
    """Make `import trl` find `compat.trl` for a script of 2023 or 2024, and log it to stderr."""
    path = _source(script, as_module=as_module)
    if path is None:
        return
    from compat.trl.detect.importer import install_importer
    from compat.trl.detect.release import installed_release, missing_from_installed
    from compat.trl.detect.usage import uses_of_files

    missing = missing_from_installed(uses_of_files([path]))
    if not missing:
        return
    install_importer()
    if os.environ.get("RANK", "0") == "0":
        lacks = f"{installed_release()} lacks {', '.join(map(str, missing))}"
        text = f"`{script}` is written for TRL 0.7, whose interface compat.trl offers: {lacks}."
        say("compat run", text, NOTE)


def _source(script: str, *, as_module: bool) -> str | None:
    """The file that holds a script's text, where there is one."""
    if as_module:
        try:
            spec = importlib.util.find_spec(script)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = importlib.util.find_spec(f"{script}.__main__")
        except (ImportError, ValueError):
            return None  # Python reports it when the module is run
        return None if spec is None else spec.origin
    return os.path.join(script, "__main__.py") if os.path.isdir(script) else script


def run_script(
    script: str, args: Sequence[str], *, as_module: bool = False, with_traceback: bool = True
) -> None:
    """Run `script` as `__main__`, with the argv and the import path that python would give it.

    Args:
        script: a path, or a module name.
        args: its arguments.
        as_module: whether `script` is a module name.
        with_traceback: whether an uncaught `ArgumentError` is shown with its traceback; with the script's
            line alone otherwise.
    """
    sys.argv[:] = [script, *args]
    sys.excepthook = functools.partial(_show, script, with_traceback)
    if as_module:
        _replace_first_path(os.getcwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    elif os.path.isfile(script) and not zipfile.is_zipfile(script):
        _replace_first_path(os.path.dirname(os.path.abspath(script)))
        _run_file(os.path.abspath(script))
    else:
        runpy.run_path(script, run_name="__main__")


def _replace_first_path(folder: str) -> None:
    # With `compat` and with `python -m compat` the first entry is the place of our own start-up, not the
    # script's.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _run_file(path: str) -> None:
    """Execute a file in a fresh `__main__`, which pickles, workers and `inspect` find again by that name."""
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __loader__=loader, __cached__=None, __annotations__={})
    code = loader.source_to_code(loader.get_data(path), path)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)  # noqa: S102 (running it is what was asked for)


def _show(
    script: str,
    with_traceback: bool,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Show an uncaught error as under plain python, where the traceback begins in the script."""
    from compat.errors import ArgumentError

    path = os.path.abspath(script)
    own = [step for step in _steps(traceback) if step.tb_frame.f_code.co_filename == path]
    if with_traceback or not issubclass(kind, ArgumentError):
        shown = (own[0] if own else None) if os.path.isfile(path) else traceback
        sys.__excepthook__(kind, error.with_traceback(shown), shown)
        return
    place = f"{script}, line {own[-1].tb_lineno}: " if own else ""
    say("compat run", f"{place}{error}\n(`compat run --traceback {script}` shows where it was raised.)")


def _steps(traceback: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
