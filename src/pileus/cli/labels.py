"""Labels on the command line: what a key and a value may be, as the server has it."""

from __future__ import annotations

import click

KEY_LENGTH_MAX = 63
VALUE_LENGTH_MAX = 255


def check_label(key: str, value: str, flag: str) -> None:
    """Raises: UsageError when no label can have this key or value."""
    if not key.isprintable() or len(key) > KEY_LENGTH_MAX:
        raise click.UsageError(f"{flag}: a label's key is at most {KEY_LENGTH_MAX} printable characters, not {key!r}")
    if not value.isprintable() or len(value) > VALUE_LENGTH_MAX:
        raise click.UsageError(
            f"{flag}: a label's value is at most {VALUE_LENGTH_MAX} printable characters, not {value!r}"
        )
