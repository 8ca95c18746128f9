"""What a VM of a package is told at its start: its properties as an OVF environment, and the CD that carries it.

Source: DMTF DSP0243, "OVF environment"; DSP8027 is its schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from msgspec import Struct

from pileus.ovf.iso import iso_image
from pileus.ovf.model import Envelope, VirtualSystemCollection
from pileus.ovf.properties import Setting, inherited

NAMESPACE = "http://schemas.dmtf.org/ovf/environment/1"
FILE = "ovf-env.xml"
FOLDER = "ovffiles"
"""Where files of the package's EnvironmentFilesSection lie on the CD (OVF 2)."""

LABEL = "OVF ENV"


class Platform(Struct, frozen=True, kw_only=True):
    """Who runs the VM."""

    kind: str = "Pileus"
    version: str = ""
    vendor: str = "Pileus"
    locale: str = "en"


class Environment(Struct, frozen=True, kw_only=True):
    """What one VM is told. Properties are by their full key, as ``Property.full_key`` has it."""

    id: str
    """Of the VM, as its descriptor says."""
    properties: Mapping[str, str]
    siblings: Mapping[str, Mapping[str, str]] = {}
    """Properties of the other VMs of its collection, by their ids."""
    platform: Platform = Platform()


def environment_of(
    envelope: Envelope, settings: Mapping[str, tuple[Setting, ...]], system_id: str, platform: Platform
) -> Environment:
    """Return what the VM of this id is told: its own properties, those of the collections around it, its siblings'.

    ``settings``: as ``properties.settings`` returns them. Source: DSP0243 9.5 and "OVF environment".
    """
    collections = (part for part in envelope.contents() if isinstance(part, VirtualSystemCollection))
    around = next((part for part in collections if any(member.id == system_id for member in part.members)), None)
    siblings = [member.id for member in around.members if member.id != system_id] if around is not None else []
    return Environment(
        id=system_id,
        properties={one.key: one.value for one in inherited(envelope, settings, system_id)},
        siblings={sibling: {one.key: one.value for one in settings.get(sibling, ())} for sibling in siblings},
        platform=platform,
    )


def environment_xml(environment: Environment) -> bytes:
    """Return the document. Raises: ValueError for a text that XML cannot say."""
    platform = environment.platform
    named = {
        "Kind": platform.kind,
        "Version": platform.version,
        "Vendor": platform.vendor,
        "Locale": platform.locale,
    }
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<Environment xmlns="{NAMESPACE}" xmlns:oe="{NAMESPACE}" oe:id={_quoted(environment.id)}>',
        "  <PlatformSection>",
        *(f"    <{name}>{_text(value)}</{name}>" for name, value in named.items() if value),
        "  </PlatformSection>",
        *_properties(environment.properties, "  "),
    ]
    for sibling, properties in environment.siblings.items():
        lines += [f"  <Entity oe:id={_quoted(sibling)}>", *_properties(properties, "    "), "  </Entity>"]
    return "\n".join([*lines, "</Environment>", ""]).encode()


def environment_iso(environment: Environment, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return the CD of transport ``iso``; ``files`` are the package's own, by path.

    Raises: ValueError for a text that XML cannot say, or a path that a CD cannot.
    """
    placed = {f"{FOLDER}/{path}": content for path, content in (files or {}).items()}
    return iso_image({FILE: environment_xml(environment), **placed}, LABEL)


def _properties(properties: Mapping[str, str], indent: str) -> list[str]:
    rows = [
        f"{indent}  <Property oe:key={_quoted(key)} oe:value={_quoted(value)}/>" for key, value in properties.items()
    ]
    return [f"{indent}<PropertySection>", *rows, f"{indent}</PropertySection>"]


def _quoted(text: str) -> str:
    """Return an attribute's value; line ends survive a parser's normalisation."""
    return quoteattr(_checked(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _text(text: str) -> str:
    return _checked(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def _checked(text: str) -> str:
    """Raises: ValueError. Source: XML 1.0, production 2."""
    for char in text:
        code = ord(char)
        if (code < 0x20 and char not in "\t\n\r") or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF):
            raise ValueError(f"the character {code:#x} cannot be given to a guest in XML")
    return text
