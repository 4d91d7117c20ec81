"""Names, parameters, their order and their defaults in TRL 0.7.11, as data, against `compat.trl`."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.signatures import shown

SURFACE = json.loads((Path(__file__).parent / "surface" / "trl-0.7.11.json").read_text())
NEEDS = {
    "models/modeling_sd_base.py": "diffusers",
    "models/sd_utils.py": "diffusers",
    "trainer/ddpo_trainer.py": "diffusers",
}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def module_of(file: str) -> Any:
    if file in NEEDS:
        pytest.importorskip(NEEDS[file], reason=f"needs the extra [{NEEDS[file]}]")
    return importlib.import_module("compat.trl." + file.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("file", SURFACE)
def test_every_name_is_there_and_takes_what_it_took(file: str) -> None:
    module = module_of(file)
    problems = [problem for name, said in SURFACE[file].items() for problem in _problems(module, name, said)]
    assert problems == []


def _problems(module: Any, name: str, said: Any) -> list[str]:
    ours = getattr(module, name, None)
    if ours is None:
        return [f"{name}: missing"]
    if isinstance(said, str):
        return _differences(name, ours, said)
    problems = []
    for method, signature in said["methods"].items():
        if inspect.getattr_static(ours, method, None) is None:
            problems.append(f"{name}.{method}: missing")
        elif callable(getattr(ours, method)):
            problems += _differences(f"{name}.{method}", getattr(ours, method), signature)
    if dataclasses.is_dataclass(ours):
        has = {field.name: field for field in dataclasses.fields(ours)}
        for field in said["fields"]:
            problems += _field_differences(name, field, has.get(field["name"]))
    return problems


def _field_differences(owner: str, said: dict[str, Any], ours: Any) -> list[str]:
    if ours is None:
        return [f"{owner}.{said['name']}: missing"]
    default = _value(said.get("default"))
    if default is _UNKNOWN or ours.default is dataclasses.MISSING or ours.default == default:
        return []
    return [f"{owner}.{said['name']}: {ours.default!r} instead of {default!r}"]


_UNKNOWN = object()


def _value(text: Any) -> Any:
    """A default as its source has it, as far as it is a literal."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else _UNKNOWN
    except (SyntaxError, ValueError):
        return _UNKNOWN


def _differences(name: str, ours: Any, signature: str) -> list[str]:
    wanted = ast.parse(f"def f({signature}): ...").body[0].args
    positional = [argument.arg for argument in [*wanted.posonlyargs, *wanted.args]]
    defaults = dict(
        zip(reversed(positional), reversed(list(map(ast.unparse, wanted.defaults))), strict=False)
    )
    positional = [argument for argument in positional if argument not in {"self", "cls"}]
    has = {
        parameter.name: parameter
        for parameter in shown(ours).parameters.values()
        if parameter.name not in {"self", "cls"}
    }
    takes_any = any(parameter.kind in VARIADIC for parameter in has.values())
    found = [parameter.name for parameter in has.values() if parameter.kind not in VARIADIC]
    problems = []
    if found[: len(positional)] != positional and not takes_any:
        problems.append(f"{name}: takes {found}, not {positional}")
    for parameter, text in defaults.items():
        default = _value(text)
        if parameter in has and default is not _UNKNOWN and has[parameter].default != default:
            problems.append(f"{name}({parameter}): {has[parameter].default!r} instead of {default!r}")
    if wanted.kwarg and not takes_any:
        problems.append(f"{name}: takes no further arguments")
    return problems


def test_the_surface_is_whole() -> None:
    assert len(SURFACE) == 22
    assert sum(map(len, SURFACE.values())) == 84
