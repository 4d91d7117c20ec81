"""Configurations that are passed as a dict, as JSON, or as the name of a file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any


def entries(given: object) -> dict[str, Any]:
    """Return the entries of a configuration; empty if there is none.

    Args:
        given: a mapping, JSON, the same in base64, or the name of a file that holds JSON.

    Raises:
        ValueError: the file does not exist, or does not hold JSON entries.
    """
    if given is None or given == "":
        return {}
    found = _loaded(given) if isinstance(given, (str, os.PathLike)) else given
    if not isinstance(found, Mapping):
        msg = 'no entries by name. Give {"entry": value}.'
        raise ValueError(msg)  # noqa: TRY004 (whoever gave it gave a wrong value)
    return dict(found)


def _loaded(given: object) -> Any:
    text = str(given)
    if os.path.isfile(text):
        with open(text, encoding="utf-8") as file:
            text, place = file.read(), "the file holds no JSON"
    elif text.lstrip().startswith("{"):
        place = "not JSON"
    else:
        try:
            text, place = base64.urlsafe_b64decode(text).decode(), "not JSON"
            return json.loads(text)
        except ValueError:
            msg = "no such file. Give the path of one that holds JSON, or the entries themselves."
            raise ValueError(msg) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        msg = f'{place} ({error}). Give {{"entry": value}}.'
        raise ValueError(msg) from error


def is_on(value: object) -> bool:
    """Convert a boolean, which files and command lines may also spell as a word."""
    return (
        value.strip().lower() in {"1", "on", "t", "true", "y", "yes"}
        if isinstance(value, str)
        else bool(value)
    )
