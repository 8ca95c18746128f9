"""A small tree of a hostile XML text: elements with line numbers, every cost bounded while it is read.

Expat, not a library with a tree of its own: a DOCTYPE stops it before an entity can be declared, and the caps hold
before memory is used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn
from xml.parsers import expat

from pileus.ovf.faults import Faults
from pileus.ovf.limits import DEFAULT, Limits

XSI = "http://www.w3.org/2001/XMLSchema-instance"
XML = "http://www.w3.org/XML/1998/namespace"
_FEED_BYTES = 1 << 16
_ELEMENT_BYTES = 150
_NO_ATTRIBUTES: dict[str, str] = {}


class Element:
    """An element: namespace and local name, attributes as ``namespace name`` → value, and either text or children."""

    __slots__ = ("attributes", "children", "line", "name", "namespace", "text")

    def __init__(self, namespace: str, name: str, attributes: dict[str, str], line: int) -> None:
        self.namespace = namespace
        self.name = name
        self.attributes = attributes
        self.line = line
        self.text = ""
        self.children: list[Element] = []

    def all(self, *names: str) -> Iterator[Element]:
        """Yield the children of these local names."""
        return (child for child in self.children if child.name in names)

    def first(self, name: str) -> Element | None:
        """Return the first child of this local name."""
        return next(self.all(name), None)

    def get(self, name: str) -> str | None:
        """Return an attribute's value: of the element's own namespace, of none, or of any OVF namespace."""
        attributes = self.attributes
        if not attributes:
            return None
        for key in (f"{self.namespace} {name}", name):
            if key in attributes:
                return attributes[key]
        ending = f"/envelope {name}", f"/envelope/1 {name}", f"/envelope/2 {name}"
        return next((value for key, value in attributes.items() if key.endswith(ending)), None)

    def of(self, namespace: str, name: str) -> str | None:
        """Return the value of an attribute of a namespace."""
        return self.attributes.get(f"{namespace} {name}")


def parse(chunks: Iterable[bytes], faults: Faults, limits: Limits = DEFAULT) -> Element:
    """Return the root element.

    Raises: OvfFault, also for a DOCTYPE, and for more than ``limits`` allows.
    """
    return _Reading(faults, limits).run(chunks)


class _Reading:
    def __init__(self, faults: Faults, limits: Limits) -> None:
        self._faults = faults
        self._limits = limits
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartNamespaceDeclHandler = self._namespace
        parser.buffer_text = True
        parser.buffer_size = _FEED_BYTES
        self._parser = parser
        self._root: Element | None = None
        self._open: list[Element] = []
        self._pieces: list[str] = []
        self._chars = 0
        self._elements = 0
        self._namespaces = 0
        self._kept = 0

    def run(self, chunks: Iterable[bytes]) -> Element:
        try:
            fed = 0
            for chunk in chunks:
                fed = self._feed(chunk, fed)
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            message = expat.errors.messages.get(error.code, "not well-formed")
            self._faults.stop("bad-xml", f"this is no well-formed XML: {message}", line=error.lineno)
        except (LookupError, ValueError):
            # What expat's caller says of an encoding that is none, or of more than one byte per character.
            self._stop("bad-encoding", "its encoding is not known; write it as UTF-8")
        if self._root is None:
            self._stop("bad-xml", "the descriptor is empty")
        return self._root

    def _feed(self, chunk: bytes, fed: int) -> int:
        for start in range(0, len(chunk), _FEED_BYTES):
            part = chunk[start : start + _FEED_BYTES]
            fed += len(part)
            if fed > self._limits.descriptor_bytes:
                self._stop("descriptor-too-big", f"the descriptor is longer than {self._limits.descriptor_bytes} bytes")
            self._parser.Parse(part, False)
            if fed - self._parser.CurrentByteIndex > self._limits.token_bytes:
                self._stop("descriptor-too-big", f"one tag is longer than {self._limits.token_bytes} bytes")
        return fed

    def _stop(self, code: str, message: str) -> NoReturn:
        self._faults.stop(code, message, line=self._parser.CurrentLineNumber)

    def _doctype(self, *_: object) -> None:
        self._stop("doctype", "a descriptor has no DOCTYPE; entities are never expanded: take it out")

    def _namespace(self, *_: object) -> None:
        self._namespaces += 1
        if self._namespaces > self._limits.namespaces:
            self._stop("descriptor-too-big", f"it declares more than {self._limits.namespaces} namespaces")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > self._limits.elements:
            self._stop("descriptor-too-big", f"the descriptor has more than {self._limits.elements} elements")
        if len(self._open) >= self._limits.depth:
            self._stop("too-deep", f"its elements are nested deeper than {self._limits.depth}")
        if len(self._parser.intern) > self._limits.names:
            self._stop("descriptor-too-big", f"it has more than {self._limits.names} different names")
        texts = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in attributes.items())
        self._keep(_ELEMENT_BYTES + texts + (sys.getsizeof(attributes) if attributes else 0))
        namespace, _, local = name.rpartition(" ")
        # The same few strings thousands of times: kept once.
        namespace, local = sys.intern(namespace), sys.intern(local)
        element = Element(namespace, local, attributes or _NO_ATTRIBUTES, self._parser.CurrentLineNumber)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)
        self._forget()

    def _end(self, _name: str) -> None:
        element = self._open.pop()
        if not element.children and self._pieces:
            element.text = "".join(self._pieces).strip()
            self._keep(sys.getsizeof(element.text))
        self._forget()

    def _characters(self, text: str) -> None:
        if self._open and not self._open[-1].children:
            self._pieces.append(text)
            self._chars += len(text)
            if self._chars > self._limits.text_chars:
                self._stop("descriptor-too-big", f"one text is longer than {self._limits.text_chars} characters")

    def _forget(self) -> None:
        self._pieces.clear()
        self._chars = 0

    def _keep(self, count: int) -> None:
        self._kept += count
        if self._kept > self._limits.tree_bytes:
            self._stop("descriptor-too-big", f"its parts take more than {self._limits.tree_bytes} bytes")
