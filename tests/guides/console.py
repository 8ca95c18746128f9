"""Reads guides: the commands in their ``console`` blocks, what these print, and the files that the reader makes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from msgspec import Struct

FENCE = re.compile(r"^```(?P<word>[a-z]*) *(?P<rest>\S*)$")


class Command(Struct, frozen=True):
    """A line after ``$``, and the lines that the guide shows below it; ``…`` stands for anything."""

    line: int
    text: str
    expected: tuple[str, ...]

    @property
    def succeeds(self) -> bool:
        """Whether the guide shows no refusal."""
        return not any(line.startswith("error:") for line in self.expected)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may be repeated until it says what is expected."""
        words = self.text.split()
        return words[:1] == ["pileus"] and words[1:2] in (["get"], ["logs"], ["describe"], ["status"], ["events"])

    @property
    def words(self) -> list[str]:
        """The command's words, without what comes after a pipe."""
        return shlex.split(self.text.partition(" | ")[0])


class Guide(Struct, frozen=True):
    """A page, with its commands in order and its files by name."""

    path: Path
    commands: tuple[Command, ...]
    files: dict[str, str]


def read(path: Path) -> Guide:
    """Return what a page says."""
    commands: list[Command] = []
    files: dict[str, str] = {}
    block: list[str] = []
    word, name, start = "", "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if not word and fence:
            block = []
            word, name, start = fence["word"] or "text", fence["rest"], number
        elif word and line == "```":
            if word == "console":
                commands += _commands(block, start)
            elif name:
                files[name] = "\n".join(block) + "\n"
            word = ""
        elif word:
            block.append(line)
    return Guide(path, tuple(commands), files)


def _commands(block: list[str], start: int) -> list[Command]:
    found: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(block, start + 1):
        if line.startswith("$ "):
            found.append((number, line[2:], []))
        else:
            found[-1][2].append(line)
    return [Command(number, text, tuple(expected)) for number, text, expected in found]


def matches(expected: tuple[str, ...], printed: str) -> bool:
    """Tell whether a program printed what a guide shows; a line ``…`` stands for any lines, space counts once."""
    if not expected:
        return True
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line == "…" else _line(" ".join(line.split())) + r"\n" for line in expected if line.strip()
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines if line)) is not None


def _line(text: str) -> str:
    return r"[^\n]*".join(re.escape(part) for part in text.split("…"))
