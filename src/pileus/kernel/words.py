"""Words that somebody else wrote, for people to read."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with a space for each character that cannot be printed: it can move no cursor, and ends no line."""
    return "".join(each if each.isprintable() else " " for each in text)
