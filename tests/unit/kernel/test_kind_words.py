"""How people call kinds."""

from __future__ import annotations

from collections import Counter

from pileus.registry import KINDS


def test_no_two_kinds_have_a_word_in_common() -> None:
    words = Counter(word for kind in KINDS for word in {kind.name, kind.short, kind.plural, *kind.aliases})
    assert [word for word, count in words.items() if count > 1] == []
    assert KINDS.find("request").name == "fleet.request"
    assert KINDS.find("machine-requests").name == "compute.request"
