"""Converts errors of jsonargparse and argparse to one sentence."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.checks import nearest
from compat.arguments.fields import is_secret
from compat.arguments.parser import without_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LONGEST = 60
"""Letters of a value that is shown; a longer one is a structure in the parser's own notation."""


@dataclass(frozen=True)
class Found:
    """A reason found in a parser's message.

    Attributes:
        groups: the parts of the reason.
        key: the dotted name of the argument; empty if the message names none.
        kind: path of the class whose argument it is; empty where it is no class's.
        rest: the message from the reason on.
        message: the whole message.
        known: the options of the command.
        prog: the command.
    """

    groups: tuple[str, ...]
    key: str
    kind: str
    rest: str
    message: str
    known: tuple[str, ...]
    prog: str

    @property
    def class_name(self) -> str:
        """The last part of `kind`."""
        return self.kind.rpartition(".")[2]


def sentence(message: str, known: Iterable[str], prog: str) -> str:
    """The message of a parser as a sentence that names the argument, its value and the way out.

    Args:
        message: what jsonargparse or argparse says: of a class, a reason for each type that it may have.
        known: the options of the command.
        prog: the command.

    Returns:
        The sentence, several lines where several options are not known; the message where none fits.
    """
    for pattern, tell in REASONS.items():
        places = list(re.finditer(pattern, message, re.MULTILINE))
        if places:
            # The deepest is about what was given, and those around it about what contains that.
            place = max(places, key=lambda each: _indent(message, each.start()))
            found = Found(
                tuple(each or "" for each in place.groups()),
                *_around(message, place.start()),
                message[place.start() :],
                message,
                tuple(known),
                prog,
            )
            return tell(found).strip()
    return message


def _indent(message: str, place: int) -> int:
    line = message[message.rfind("\n", 0, place) + 1 :]
    return len(line) - len(line.lstrip(" "))


def _around(message: str, place: int) -> tuple[str, str]:
    """Key and class that a reason stands below: the lines above it that are less and less indented."""
    end = message.find("\n", place)
    above = message[: None if end < 0 else end].splitlines()
    keys, kinds, limit = [], [], _indent(message, place) + 1
    for line in reversed(above):
        indent = len(line) - len(line.lstrip(" "))
        if not line.strip() or indent >= limit:
            continue
        limit = indent
        keys += re.findall(r'Parser key "([\w.]+)"', line)
        kinds += re.findall(r"Problem with given class_path '([\w.]+)'", line)
    return ".".join(reversed(keys)), kinds[0] if kinds else ""


def _pair(key: str, value: str) -> str:
    """`key=value`, the key alone where the value is secret, or no plain one."""
    is_plain = len(value) <= LONGEST and not re.search(r"[({\n]", value)
    return f"{key}={value}" if is_plain and not is_secret(key.rpartition(".")[2]) else key


def _guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    return nearest(name, known).replace("mean `", f"mean `{prefix}")


# The reasons.


def _unknown_options(found: Found) -> str:
    options = [word.partition("=")[0] for word in without_values(found.groups[0].split())]
    lines = [
        f"`{each}`: `{found.prog}` has no such argument. {nearest(each, found.known)}" for each in options
    ]
    return "\n".join(map(str.rstrip, lines))


def _unknown_setting(found: Found) -> str:
    name = found.groups[0]
    return f"`{name}`: `{found.prog}` has no such argument. {nearest(f'--{name}', found.known)}"


def _unknown_parameter(found: Found) -> str:
    name = found.groups[0]
    if not found.kind:
        return _unknown_setting(found)
    takes = sorted(_parameters(found.kind))
    way_out = _guess(name, takes, f"--{found.key}.") or f"It takes {', '.join(takes) or 'none'}."
    return f"`{found.key}.{name}`: {found.class_name} has no such argument. {way_out}"


def _parameters(kind: str) -> Iterator[str]:
    """The names that a class may be given, also those that it hands on to the classes it derives from."""
    cls = _class(kind)
    for base in cls.__mro__[:-1] if isinstance(cls, type) else ():
        if "__init__" not in vars(base):
            continue
        taken = [*inspect.signature(vars(base)["__init__"]).parameters.values()][1:]
        yield from (each.name for each in taken if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD})
        if not any(each.kind == each.VAR_KEYWORD for each in taken):
            return


def _class(path: str) -> Any:
    """What a path names in the modules that are loaded; None where it names nothing there."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _missing_parameter(found: Found) -> str:
    names = found.groups[0].split(", ")
    flags = " ".join(f"--{found.key}.{name} VALUE" for name in names)
    return f"`{found.key}`: {found.class_name} needs `{'`, `'.join(names)}`. Give `{flags}`."


def _missing_class(found: Found) -> str:
    module, name = found.groups
    guess = _guess(name, vars(sys.modules[module]) if module in sys.modules else (), f"{module}.")
    return f"`{_pair(found.key, found.kind)}`: the module `{module}` has no `{name}`. {guess}"


def _missing_module(found: Found) -> str:
    way_out = "Python looks for modules in the folders of PYTHONPATH."
    return f"`{_pair(found.key, found.kind)}`: there is no module `{found.groups[0]}`. {way_out}"


def _missing_name(found: Found) -> str:
    name = found.groups[0]
    guess = nearest(name, _names(found.message)) or "Give a class as in `package.module.Class`."
    return f"`{_pair(found.key, name)}`: no class of that name is known. {guess}"


def _names(message: str) -> set[str]:
    """The names of all classes that derive from those which a message expects."""
    expected = re.search(r"Subtypes: \[(.*)\]", message)
    paths = re.findall(r"\w+(?:\.\w+)+", expected[1] if expected else "")
    queue: list[type] = [kind for kind in map(_class, paths) if isinstance(kind, type)]
    names = set()
    while queue:
        kind = queue.pop()
        names.add(kind.__name__)
        queue += type.__subclasses__(kind)
    return names


def _missing_file(found: Found) -> str:
    return f"`{found.key}={found.groups[0]}`: there is no such file that can be read."


def _no_yaml(found: Found) -> str:
    return f"`config`: the file is no YAML: {' '.join(found.rest.partition(':')[2].split())}."


def _wrong_type(found: Found) -> str:
    single, value, several = found.groups
    key = found.key
    if several:
        given = re.search(r"^ *Given value: (.*)", found.rest, re.MULTILINE)
        value = given[1] if given else ""
        if nested := re.match(r"NestedArg\(key='(.*?)', val='?(.*?)'?\)$", value):
            key, value = f"{key}.{nested[1]}", nested[2]
    return f"`{_pair(key, value)}`: it has to be {_types(single or several)}."


def _types(text: str) -> str:
    """Return types in readable form: `int or None`."""
    words = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "None")
    words = re.sub(r"typing\.Literal\[(.*?)\]", lambda each: each[1].replace(", ", " or "), words)
    return re.sub(r"\b(?:\w+\.)+(?=\w+)", "", words).replace(", ", " or ")


def _no_value(found: Found) -> str:
    option = found.groups[0]
    return f"`{option}`: it has no value. Give `{option} VALUE`."


def _unreadable(found: Found) -> str:
    option, kind, value = found.groups
    return f"`{_pair(option.lstrip('-'), value)}`: it has to be {kind}."


def _no_choice(found: Found) -> str:
    option, value, choices = found.groups
    known = re.findall(r"[\w.\-]+", choices)
    way_out = nearest(value, known) or f"Give one of {', '.join(known)}."
    return f"`{_pair(option.lstrip('-'), value)}`: there is no such choice. {way_out}"


def _no_switch(found: Found) -> str:
    option, value, choices = found.groups
    return f"`{_pair(option.lstrip('-'), value)}`: it has to be one of {choices}."


OPTION = r"argument (?:-\w/)?(--[\w.\-]+)\S*: "

REASONS: dict[str, Callable[[Found], str]] = {
    r"[Uu]nrecognized arguments: (.*)": _unknown_options,
    r"Subcommand '\w+' does not accept option '([\w.]+)'": _unknown_setting,
    r"Option '([\w.]+)' is not accepted": _unknown_parameter,
    r"the following arguments are required: (.*)": _missing_parameter,
    r"module '([\w.]+)' has no attribute '(\w+)'": _missing_class,
    r"No module named '([\w.]+)'": _missing_module,
    r"(?:Expected a dot import path string|Unexpected import path format): (.*)": _missing_name,
    r"File does not exist: '(.*)'": _missing_file,
    r"Unable to load config ['\"](.*)['\"]": _missing_file,
    r"Problems parsing config:": _no_yaml,
    r"Expected a (.+?)\. Got value: (.*)|Subtypes: \[(.*)\]": _wrong_type,
    f"{OPTION}expected one argument": _no_value,
    f"{OPTION}invalid (\\w+) value: '(.*)'": _unreadable,
    f"{OPTION}invalid choice: '?(.*?)'? \\(choose from (.*)\\)": _no_choice,
    f"{OPTION}Truthy value expected: got (.*) but expected one of (.*?)(?: \\(|\\.|$)": _no_switch,
}
"""How a reason reads → what tells it; the first that stands in a message is told."""
