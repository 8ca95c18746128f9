"""Turns: how much of what may be slow a server does at the same time, and how much of that for one account."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator


class Turns:
    """``most`` at the same time, ``of_account`` of them for one account; the cluster itself is none."""

    def __init__(self, most: int, of_account: int) -> None:
        self._most, self._of_account = most, of_account
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def turn(self, account_id: str) -> Iterator[bool]:
        """Give whether there is room for one more, and hold it for the block."""
        most = self._of_account if account_id else self._most
        if self._taken.total() >= self._most or self._taken[account_id] >= most:
            yield False
            return
        self._taken[account_id] += 1
        try:
            yield True
        finally:
            self._taken[account_id] -= 1
            self._taken += Counter()  # forgets accounts that have none
