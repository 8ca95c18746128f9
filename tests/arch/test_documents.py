"""The documents are whole: every link leads somewhere, and every item of the requirements has a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools.code import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changelog.d").glob("*.md")]

ITEMS = {"A": 25, "B": 12, "C": 13, "D": 9, "E": 13}
"""How many items each part of the requirements has."""

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as common renderers make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def test_every_item_of_the_requirements_has_a_state_and_what_is_there_a_command() -> None:
    rows = re.findall(
        r"^\| ([A-E]\d+) \| .+? \| (works|partly|not yet) \| (.*?) \| (.*?) \|$",
        (ROOT / "docs" / "features.md").read_text(),
        re.MULTILINE,
    )
    wanted = [f"{part}{number}" for part, count in ITEMS.items() for number in range(1, count + 1)]
    assert [item for item, *_ in rows] == wanted
    assert [item for item, state, command, _ in rows if state == "works" and not command] == []
    assert [item for item, state, _, remark in rows if state == "partly" and not remark] == []


def test_decisions_are_numbered_without_a_gap_and_dated() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        head = page.read_text().splitlines()
        assert head[0].startswith(f"# {int(page.name[:4])}. "), page.name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", head[2]), page.name
