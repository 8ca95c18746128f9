"""Parses virtual hardware sections: their items and the vendors' settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pileus.ovf.faults import shown
from pileus.ovf.model import Config, Firmware, HardwareSection, Item
from pileus.ovf.scope import TRUE, VMW, Scope
from pileus.ovf.tree import Element

_ITEMS = ("Item", "EthernetPortItem", "StorageItem")
_BOUNDS: tuple[Literal["normal", "min", "max"], ...] = ("normal", "min", "max")
_CONFIGS = ("Config", "ExtraConfig")
_TYPE_MAX = 0xFFFF


def hardware(scope: Scope, section: Element, system: Element) -> HardwareSection:
    """Return what a VirtualHardwareSection says. ``system``: the element around it, where VirtualBox says more."""
    config = _config(section)
    return HardwareSection(
        id=scope.attribute_text(section, "id"),
        transports=tuple(scope.attribute_text(section, "transport").split()),
        system_types=_system_types(section),
        items=items(scope, section),
        config=config,
        firmware=_firmware(scope, config) or _firmware_of_virtualbox(system),
        line=section.line,
    )


def items(scope: Scope, section: Element) -> tuple[Item, ...]:
    """Return the items of a section."""
    return tuple(_item(scope, element) for element in section.all(*_ITEMS))


def _item(scope: Scope, element: Element) -> Item:
    said = _Said(element)
    resource_type = scope.whole_text(said.element("ResourceType"), most=_TYPE_MAX)
    item_id = said.text("InstanceID", "InstanceId")
    if not item_id:
        scope.faults.error("missing-element", f"{element.name} has no InstanceID", line=element.line)
    if resource_type is None and not said.text("ResourceType"):
        resource_type = _implied(element)
        if resource_type is None:
            scope.faults.error("missing-element", f"item {shown(item_id)} has no ResourceType", line=element.line)
    return Item(
        id=item_id,
        resource_type=resource_type or 0,
        resource_subtype=said.text("ResourceSubType"),
        name=said.text("ElementName", "Caption"),
        description=said.text("Description"),
        parent=said.text("Parent"),
        address=said.text("Address", "BusNumber"),
        address_on_parent=said.text("AddressOnParent"),
        quantity=scope.whole_text(said.element("VirtualQuantity")),
        units=said.text("AllocationUnits", "VirtualQuantityUnits"),
        reservation=scope.whole_text(said.element("Reservation")),
        limit=_limit(scope, said.element("Limit")),
        weight=scope.whole_text(said.element("Weight")),
        connections=said.texts("Connection"),
        host_resources=said.texts("HostResource"),
        automatic_allocation=_truth(said.text("AutomaticAllocation")),
        config=(*_config(element), *said.vendor_settings()),
        required=scope.truth(element, "required", True),
        configurations=tuple(scope.attribute_text(element, "configuration").split()),
        bound=scope.word(element, "bound", _BOUNDS, "normal"),
        line=element.line,
    )


def _limit(scope: Scope, element: Element | None) -> int | None:
    """Return a limit; ``-1`` and 2^64 - 1 are how tools write that there is none."""
    if element is None or element.text in ("-1", str((1 << 64) - 1)):
        return None
    return scope.whole_text(element)


class _Said:
    """An item's children by name; where a vendor has one of the same name, CIM's counts."""

    def __init__(self, element: Element) -> None:
        self._found: dict[str, list[Element]] = {}
        self._vendor: list[Element] = []
        for child in element.children:
            if child.namespace.startswith(VMW):
                self._vendor.append(child)
            else:
                self._found.setdefault(child.name, []).append(child)

    def element(self, name: str) -> Element | None:
        return next(iter(self._found.get(name, ())), None)

    def text(self, *names: str) -> str:
        return next((found.text for name in names if (found := self.element(name)) is not None and found.text), "")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(element.text for element in self._found.get(name, ()) if element.text)

    def vendor_settings(self) -> Iterator[Config]:
        """Yield what VMware says in elements of its own, such as ``vmw:CoresPerSocket``."""
        for element in self._vendor:
            if element.name not in _CONFIGS:
                yield Config(key=element.name, value=element.text, line=element.line)


def _implied(element: Element) -> int | None:
    return {"EthernetPortItem": 10, "StorageItem": 17}.get(element.name)


def _truth(text: str) -> bool | None:
    return text.lower() in TRUE if text else None


def _config(element: Element) -> tuple[Config, ...]:
    return tuple(
        Config(
            key=child.of(VMW, "key") or child.get("key") or "",
            value=child.of(VMW, "value") or child.get("value") or "",
            required=(child.get("required") or "").lower() in TRUE,
            line=child.line,
        )
        for child in element.all(*_CONFIGS)
    )


def _system_types(section: Element) -> tuple[str, ...]:
    system = section.first("System")
    if system is None:
        return ()
    return tuple(word for child in system.all("VirtualSystemType") for word in child.text.split())


def _firmware(scope: Scope, config: tuple[Config, ...]) -> Firmware | None:
    for one in config:
        if one.key.lower() != "firmware":
            continue
        value = one.value.lower()
        if value in ("efi", "uefi", "bios"):
            return "bios" if value == "bios" else "uefi"
        scope.faults.error("unknown-firmware", f"firmware {shown(one.value)} is neither bios nor efi", line=one.line)
    return None


def _firmware_of_virtualbox(system: Element) -> Firmware | None:
    """Return the firmware that ``vbox:Machine`` names; VirtualBox has no other place for it."""
    for machine in system.all("Machine"):
        for part in machine.all("Hardware"):
            firmware = part.first("Firmware") or next(
                (found for bios in part.all("BIOS") if (found := bios.first("Firmware"))), None
            )
            if firmware is not None:
                named = (firmware.get("type") or "").lower()
                return "uefi" if named.startswith("efi") else "bios"
    return None
