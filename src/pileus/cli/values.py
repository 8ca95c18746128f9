"""The value of one flag: text to what the field takes, with messages that say how to write it right."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from pileus.cli.failure import suggestion
from pileus.cli.fields import Field
from pileus.cli.units import refuse_number, suffix


class Value(click.ParamType[Any]):
    """Converts text to the value of a field; to a list for a field that holds many."""

    name = "value"

    def __init__(self, flag: str, field: Field) -> None:
        self.flag = flag
        self.field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value. Raises: UsageError."""
        try:
            return parse(self.flag, self.field, value)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None


def parse(flag: str, field: Field, text: str) -> Any:
    """Return the field's value that ``text`` says. Raises: ValueError with a message for the user."""
    if field.many:
        return [_one(flag, field, part) for part in _parts(flag, field, text)]
    return _one(flag, field, read_text(flag, text) if field.file else text)


def _parts(flag: str, field: Field, text: str) -> list[str]:
    if field.flag or field.file:
        return _lines(flag, text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(flag: str, text: str) -> list[str]:
    """Return ``text``, or the lines of the file that it names, such as a public key or a file of them."""
    if not text.startswith("@") and not _is_file(text):
        return [text] if text else []
    content = read_text(flag, text.removeprefix("@"))
    if content.lstrip().startswith("-----BEGIN"):
        raise ValueError(
            f"{flag}: {text.removeprefix('@')} holds a private key; give the public one, which ends in .pub"
        )
    return [line.strip() for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except OSError:
        return False  # longer than a path may be: it is the value itself


def read_text(flag: str, name: str) -> str:
    """Return the text of a file; of standard input for ``-``; nothing for no name. Raises: ValueError."""
    if not name:
        return ""
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{flag}: cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{flag}: {name} is not text in UTF-8") from None


def _one(flag: str, field: Field, text: str) -> Any:
    if field.form == "integer":
        return _integer(flag, field, text)
    if field.form == "number":
        return _number(flag, field, text)
    if field.form == "json":
        return _json(flag, field, text)
    if field.choices and text not in field.choices:
        close = suggestion(text, list(field.choices))
        raise ValueError(f"{flag} takes one of {', '.join(field.words)}, not {text!r}{close}")
    if field.length_max is not None and len(text) > field.length_max:
        raise ValueError(f"{flag} takes at most {field.length_max} characters, got {len(text)}")
    if field.pattern and not re.search(field.pattern, text):
        raise ValueError(f"{flag}: {text!r} does not have the form {field.pattern}")
    return text


def _integer(flag: str, field: Field, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise ValueError(refuse_number(flag, suffix(field.name), text))
    number = int(text)
    _check_range(flag, field, number)
    return number


def _number(flag: str, field: Field, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{flag} takes a number, not {text!r}") from None
    _check_range(flag, field, number)
    return number


def _check_range(flag: str, field: Field, number: float) -> None:
    low, high = field.minimum, field.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        limits = f"{low} to {high}" if low is not None and high is not None else f"at least {low}"
        if low is None:
            limits = f"at most {high}"
        raise ValueError(f"{flag} takes {limits}, not {number}")


def _json(flag: str, field: Field, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if field.plain_text:
            return text
        raise ValueError(f"""{flag} takes JSON such as '{{"key": "value"}}': {error}""") from None
