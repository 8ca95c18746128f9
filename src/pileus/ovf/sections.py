"""Parses a VirtualSystem or VirtualSystemCollection and its sections, but for the hardware."""

from __future__ import annotations

from typing import Literal

from pileus.ovf.faults import shown
from pileus.ovf.items import hardware, items
from pileus.ovf.model import (
    Content,
    EnvironmentFile,
    Eula,
    OperatingSystem,
    Product,
    Property,
    PropertyValue,
    StartupItem,
    UnknownSection,
    VirtualSystem,
    VirtualSystemCollection,
)
from pileus.ovf.qualifiers import qualifiers
from pileus.ovf.scope import OVF, VMW, Scope, kind_of
from pileus.ovf.tree import Element

_SYSTEM_KINDS = ("VirtualSystem", "VirtualSystemCollection")
_START: tuple[Literal["powerOn", "none"], ...] = ("powerOn", "none")
_STOP: tuple[Literal["powerOff", "guestShutdown", "none"], ...] = ("powerOff", "guestShutdown", "none")
_DELAY_S_MAX = 86_400
_OS_ID_MAX = 0xFFFF

Sorted = dict[str, list[Element]]


def content(scope: Scope, element: Element) -> Content:
    """Return what a content element says, members included."""
    if kind_of(element) == "VirtualSystem":
        return _system(scope, element)
    return _collection(scope, element)


def _system(scope: Scope, element: Element) -> VirtualSystem:
    found, unknown = _sort(scope, element, _SYSTEM_SECTIONS)
    installs = found.get("InstallSection", [])
    return VirtualSystem(
        id=scope.needed(element, "id"),
        name=_name(scope, element),
        about=_about(scope, element, found),
        os=next((_os(scope, one) for one in found.get("OperatingSystemSection", [])), None),
        hardware=tuple(hardware(scope, one, element) for one in found.get("VirtualHardwareSection", [])),
        products=tuple(_product(scope, one) for one in found.get("ProductSection", [])),
        eulas=_eulas(scope, found),
        boots_to_install=bool(installs),
        install_stop_delay_s=next(
            (scope.whole(one, "initialBootStopDelay", most=_DELAY_S_MAX) or 0 for one in installs), 0
        ),
        boot_order=_boot_order(scope, found),
        environment_files=_environment_files(scope, found),
        unknown=unknown,
        line=element.line,
    )


def _collection(scope: Scope, element: Element) -> VirtualSystemCollection:
    found, unknown = _sort(scope, element, _COLLECTION_SECTIONS)
    members = [child for child in element.children if child.namespace in OVF and kind_of(child) in _SYSTEM_KINDS]
    if not members:
        scope.faults.warn("empty-collection", "this collection has no VM", line=element.line)
    startup = [item for section in found.get("StartupSection", []) for item in section.all("Item")]
    return VirtualSystemCollection(
        id=scope.needed(element, "id"),
        name=_name(scope, element),
        about=_about(scope, element, found),
        members=tuple(content(scope, member) for member in members),
        startup=tuple(_startup(scope, item) for item in startup),
        products=tuple(_product(scope, one) for one in found.get("ProductSection", [])),
        eulas=_eulas(scope, found),
        resources=tuple(item for one in found.get("ResourceAllocationSection", []) for item in items(scope, one)),
        environment_files=_environment_files(scope, found),
        unknown=unknown,
        line=element.line,
    )


_COMMON_SECTIONS = ("ProductSection", "AnnotationSection", "EulaSection", "EnvironmentFilesSection")
_SYSTEM_SECTIONS = (
    *_COMMON_SECTIONS,
    "OperatingSystemSection",
    "VirtualHardwareSection",
    "InstallSection",
    "BootDeviceSection",
)
_COLLECTION_SECTIONS = (*_COMMON_SECTIONS, "StartupSection", "ResourceAllocationSection")


def _sort(scope: Scope, element: Element, known: tuple[str, ...]) -> tuple[Sorted, tuple[UnknownSection, ...]]:
    found: Sorted = {}
    unknown: list[UnknownSection] = []
    for child in element.children:
        kind = kind_of(child)
        if child.namespace in OVF and kind in known:
            found.setdefault(kind, []).append(child)
        elif child.namespace in OVF and (kind in ("Info", "Name") or kind in _SYSTEM_KINDS):
            continue
        else:
            unknown += scope.unknown(child)
    for kind in ("OperatingSystemSection", "InstallSection"):
        if len(found.get(kind, [])) > 1:
            scope.faults.error("duplicate-section", f"there is a second {kind}", line=found[kind][1].line)
    if kind_of(element) == "VirtualSystem":
        for child in element.children:
            if child.namespace in OVF and kind_of(child) in _SYSTEM_KINDS:
                scope.faults.error("nested-system", "a VirtualSystem cannot hold another", line=child.line)
    return found, tuple(unknown)


def _name(scope: Scope, element: Element) -> str:
    return scope.text_of(element, "Name")


def _about(scope: Scope, element: Element, found: Sorted) -> str:
    notes = [scope.text_of(one, "Annotation") for one in found.get("AnnotationSection", [])]
    return "\n".join(text for text in (*notes, scope.text_of(element, "Info")) if text)


def _os(scope: Scope, element: Element) -> OperatingSystem:
    return OperatingSystem(
        id=scope.whole(element, "id", most=_OS_ID_MAX) or 0,
        version=scope.attribute_text(element, "version"),
        description=scope.text_of(element, "Description"),
        vendor_type=element.of(VMW, "osType") or "",
        line=element.line,
    )


def _eulas(scope: Scope, found: Sorted) -> tuple[Eula, ...]:
    return tuple(Eula(text=scope.text_of(one, "License"), line=one.line) for one in found.get("EulaSection", []))


def _boot_order(scope: Scope, found: Sorted) -> tuple[str, ...]:
    """Return InstanceIDs of the boot source settings, by their order. Source: DSP0243 2.1, 9.18 (CIM_BootConfigSetting)."""
    sources = [
        element
        for section in found.get("BootDeviceSection", [])
        for element in _below(section)
        if element.name == "CIM_BootSourceSetting"
    ]
    named = [scope.text_of(source, "InstanceID") for source in sources]
    return tuple(name for name in named if name)


def _below(element: Element) -> list[Element]:
    return [part for child in element.children for part in (child, *_below(child))]


def _environment_files(scope: Scope, found: Sorted) -> tuple[EnvironmentFile, ...]:
    return tuple(
        EnvironmentFile(file_id=scope.needed(file, "fileRef"), path=scope.needed(file, "path"), line=file.line)
        for section in found.get("EnvironmentFilesSection", [])
        for file in section.all("File")
    )


def _startup(scope: Scope, element: Element) -> StartupItem:
    return StartupItem(
        id=scope.needed(element, "id"),
        order=scope.whole(element, "order", most=0xFFFF) or 0,
        start_delay_s=scope.whole(element, "startDelay", most=_DELAY_S_MAX) or 0,
        waiting_for_guest=scope.truth(element, "waitingForGuest", False),
        stop_delay_s=scope.whole(element, "stopDelay", most=_DELAY_S_MAX) or 0,
        start_action=scope.word(element, "startAction", _START, "powerOn"),
        stop_action=scope.word(element, "stopAction", _STOP, "powerOff"),
        line=element.line,
    )


_PRODUCT_TEXTS = ("Product", "Vendor", "Version", "FullVersion", "ProductUrl", "VendorUrl", "AppUrl")


def _product(scope: Scope, section: Element) -> Product:
    class_id, instance_id = (scope.attribute_text(section, name) for name in ("class", "instance"))
    texts = {name: scope.text_of(section, name) for name in _PRODUCT_TEXTS}
    category, properties = "", []
    for child in section.children:
        if child.name == "Category":
            category = scope.text(child)
        elif child.name == "Property":
            properties.append(_property(scope, child, (class_id, instance_id), category))
    return Product(
        class_id=class_id,
        instance_id=instance_id,
        name=texts["Product"],
        vendor=texts["Vendor"],
        version=texts["Version"],
        full_version=texts["FullVersion"],
        product_url=texts["ProductUrl"],
        vendor_url=texts["VendorUrl"],
        app_url=texts["AppUrl"],
        properties=tuple(properties),
        line=section.line,
    )


def _property(scope: Scope, element: Element, section: tuple[str, str], category: str) -> Property:
    key = scope.needed(element, "key")
    if section[0] == "" and section[1]:
        scope.faults.warn(
            "no-class",
            f"property {shown(key)} is of a section with an ovf:instance and no ovf:class",
            line=element.line,
        )
    limits = qualifiers(scope, element)
    return Property(
        key=key,
        full_key=".".join(part for part in (section[0], key, section[1]) if part),
        type=(scope.attribute_text(element, "type") or "string").lower(),
        values=_values(scope, element),
        label=scope.text_of(element, "Label") or key,
        description=scope.text_of(element, "Description"),
        category=category,
        user_configurable=scope.truth(element, "userConfigurable", False),
        password=scope.truth(element, "password", False),
        length_min=limits.length_min,
        length_max=limits.length_max,
        value_min=limits.value_min,
        value_max=limits.value_max,
        allowed=limits.allowed,
        unknown_qualifiers=limits.unknown,
        line=element.line,
    )


def _values(scope: Scope, element: Element) -> tuple[PropertyValue, ...]:
    own = element.get("value")
    values = [] if own is None else [PropertyValue(value=own)]
    for child in element.all("Value"):
        value = child.get("value")
        if value is None:
            scope.faults.error("missing-attribute", "Value has no ovf:value", line=child.line)
            continue
        values.append(PropertyValue(value=value, configuration=scope.attribute_text(child, "configuration")))
    return tuple(values)
