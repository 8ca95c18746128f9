"""What a command says on standard error while it works: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

QUIET_S = 1.0
"""What is done sooner says nothing."""

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def lively() -> bool:
    """Tell whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def clean(text: str) -> str:
    """Return ``text`` without characters that could steer a terminal: what others wrote is never trusted."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


class Progress:
    """Shows what is waited for and for how long. Use as ``with Progress() as progress``."""

    def __init__(self) -> None:
        self._lively = lively()
        self._since = time.monotonic()
        self._said = ""
        self._text = ""
        self._frame = 0
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.erase()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._since

    def say(self, text: str) -> None:
        """Say what is going on now."""
        self._text = clean(text)
        self.tick()

    def tick(self) -> None:
        """Redraw; call it a few times a second."""
        if self.elapsed_s < QUIET_S or not self._text:
            return
        if self._lively:
            self._draw()
        elif self._text != self._said:
            self._said = self._text
            sys.stderr.write(f"{self._text} ({self.elapsed_s:.0f} s)\n")
            sys.stderr.flush()

    def erase(self) -> None:
        """Take the moving line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _draw(self) -> None:
        self._frame = (self._frame + 1) % len(_FRAMES)
        tail = f" ({self.elapsed_s:.0f} s)"
        room = _width() - len(tail) - 3
        text = self._text if len(self._text) <= room else f"{self._text[: room - 1]}…"
        sys.stderr.write(f"\r{_FRAMES[self._frame]} {text}{tail}\x1b[K")
        sys.stderr.flush()
        self._drawn = True


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


@contextlib.contextmanager
def slow(text: str) -> Iterator[None]:
    """Show ``text`` with a moving line while the block takes longer than a second, on a terminal only."""
    if not lively():
        yield
        return
    import threading

    over = threading.Event()

    def turn() -> None:
        with Progress() as progress:
            while not over.wait(0.1):
                progress.say(text)

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Bar:
    """Shows how much of an upload is done. ``total``: bytes, None when not known."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._since = time.monotonic()
        self._drawn_at = self._since
        self._lively = lively()
        self._drawn = False

    def add(self, count: int) -> None:
        """Say that ``count`` more bytes are done."""
        from pileus.cli.units import human_bytes

        self._done += count
        now = time.monotonic()
        pause = 0.1 if self._lively else 5.0
        if now - self._drawn_at < pause or now - self._since < QUIET_S:
            return
        self._drawn_at = now
        speed = human_bytes(int(self._done / (now - self._since)))
        share = f"{100 * self._done // self._total:3d} % of {human_bytes(self._total)}" if self._total else ""
        line = f"{self._label}: {human_bytes(self._done)} {share} at {speed}/s"
        sys.stderr.write(f"\r{line}\x1b[K" if self._lively else f"{line}\n")
        sys.stderr.flush()
        self._drawn = self._lively

    def close(self) -> None:
        """Take the bar away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
