"""What every part of the parser needs: where faults go, which texts are meant, and how values are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

from pileus.ovf import units
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import Limits
from pileus.ovf.model import UnknownSection
from pileus.ovf.tree import XML, XSI, Element

Word = TypeVar("Word", bound=str)

OVF_1 = "http://schemas.dmtf.org/ovf/envelope/1"
OVF_2 = "http://schemas.dmtf.org/ovf/envelope/2"
OVF_BEFORE = ("http://www.vmware.com/schema/ovf/1/envelope", "http://schemas.dmtf.org/ovf/1/envelope")
OVF = frozenset((OVF_1, OVF_2, *OVF_BEFORE, ""))
"""Before the standard, elements below the envelope were in no namespace."""

VMW = "http://www.vmware.com/schema/ovf"

TRUE, FALSE = ("true", "1"), ("false", "0")
"""As XML Schema has them."""


def kind_of(element: Element) -> str:
    """Return a section's or content's kind. Before OVF 1.0 it is in xsi:type: ``<Section xsi:type="ovf:X_Type">``."""
    typed = element.of(XSI, "type")
    if typed is not None and element.name in ("Section", "Content"):
        return typed.rpartition(":")[2].removesuffix("_Type")
    return element.name


class Scope:
    """One descriptor while it is parsed."""

    def __init__(self, faults: Faults, limits: Limits, root: Element, language: str) -> None:
        self.faults = faults
        self.limits = limits
        self._texts, self.languages = _bundles(root, language)

    def text(self, element: Element | None) -> str:
        """Return an element's text in the wanted language; empty when there is no element."""
        if element is None:
            return ""
        message = element.get("msgid")
        return element.text if message is None else self._texts.get(message, element.text)

    def text_of(self, parent: Element, name: str) -> str:
        """Return the text of a child."""
        return self.text(parent.first(name))

    def attribute_text(self, element: Element, name: str) -> str:
        """Return an attribute's value, in which ``ovf:msgid`` is not possible; empty when it lacks."""
        return (element.get(name) or "").strip()

    def needed(self, element: Element, name: str) -> str:
        """Return an attribute that must be there; its lack is a fault, and an empty text."""
        value = self.attribute_text(element, name)
        if not value:
            self.faults.error("missing-attribute", f"{element.name} has no ovf:{name}", line=element.line)
        return value

    def truth(self, element: Element, name: str, default: bool) -> bool:
        """Return a boolean attribute."""
        value = self.attribute_text(element, name).lower()
        if value in TRUE or value in FALSE:
            return value in TRUE
        if value:
            self._bad(element, name, value, "true or false")
        return default

    def whole(self, element: Element, name: str, *, most: int = (1 << 63) - 1) -> int | None:
        """Return an attribute that is a whole number from 0; None when it lacks or is none, which is a fault."""
        value = self.attribute_text(element, name)
        if not value:
            return None
        found = units.number(value, most=most)
        if found is None:
            self._bad(element, name, value, f"a whole number from 0 to {most}")
        return found

    def whole_text(self, element: Element | None, *, most: int = (1 << 63) - 1) -> int | None:
        """Return an element's text as a whole number from 0; None when it lacks or is none, which is a fault."""
        if element is None or not element.text:
            return None
        found = units.number(element.text, most=most)
        if found is None:
            self._bad(element, "", element.text, f"a whole number from 0 to {most}")
        return found

    def word(self, element: Element, name: str, known: Collection[Word], default: Word) -> Word:
        """Return an attribute that is one of some words."""
        value = self.attribute_text(element, name)
        if not value:
            return default
        found = next((word for word in known if word.lower() == value.lower()), None)
        if found is None:
            self._bad(element, name, value, " or ".join(known))
        return found or default

    def unique(self, elements: Sequence[tuple[str, int]], what: str) -> None:
        """Note each id that an earlier one has too."""
        seen: dict[str, int] = {}
        for name, line in elements:
            if name and name in seen:
                self.faults.error("duplicate-id", f"{what} {shown(name)} is also in line {seen[name]}", line=line)
            seen.setdefault(name, line)

    def unknown(self, section: Element) -> Iterator[UnknownSection]:
        """Yield a section that is not known, as one that was passed over; required, it is a fault."""
        name = kind_of(section)
        if section.namespace not in OVF:
            name = f"{{{section.namespace}}}{name}"
        if self.truth(section, "required", True):
            self.faults.error(
                "unknown-section",
                f'section {shown(name)} is required and not known here; if the VM works without it, say ovf:required="false"',
                line=section.line,
            )
            return
        self.faults.note(
            "section-passed-over", f"section {shown(name)} is not known and not required", line=section.line
        )
        yield UnknownSection(name=name, line=section.line)

    def _bad(self, element: Element, name: str, value: str, wanted: str) -> None:
        where = f"ovf:{name} of {element.name}" if name else element.name
        self.faults.error("bad-value", f"{where} is {shown(value)}, not {wanted}", line=element.line)


def _bundles(root: Element, language: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return msgid → text of the language nearest to ``language``, and the languages that there are."""
    found: dict[str, dict[str, str]] = {}
    for bundle in root.all("Strings"):
        texts = found.setdefault(bundle.of(XML, "lang") or "", {})
        for message in bundle.all("Msg"):
            texts[message.get("msgid") or ""] = message.text
    wanted = [language, root.of(XML, "lang") or "", "en-US", "en"]
    chosen: dict[str, str] = {}
    for want in reversed([want for want in wanted if want]):
        for have, texts in found.items():
            if have.lower() == want.lower() or have.lower().partition("-")[0] == want.lower().partition("-")[0]:
                chosen |= texts
    if not chosen and found:
        chosen = next(iter(found.values()))
    return chosen, tuple(found)
