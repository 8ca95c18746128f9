"""What a host driver raises; the kind that called it decides once what the error means."""

from __future__ import annotations

from pileus.kernel.errors import PileusError


class DriverError(PileusError):
    """A driver could not do what it was asked; ``reason`` is the CamelCase constant shown to the user."""

    code = "driver-error"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class QmpRefused(DriverError):
    """QEMU answered a QMP command with an error; ``qemu_class`` is its class, such as ``DeviceNotFound``."""

    def __init__(self, qemu_class: str, message: str) -> None:
        super().__init__("QemuRefused", message)
        self.qemu_class = qemu_class


class OvsdbError(DriverError):
    """Open vSwitch refused a transaction or did not answer."""

    def __init__(self, message: str) -> None:
        super().__init__("SwitchRefused", message)


class ImageRefused(DriverError):
    """An image is not what it says, or holds something that Pileus never follows (backing file, external data)."""


class DiskFull(DriverError):
    """The file system of the pool has no room."""

    def __init__(self, message: str) -> None:
        super().__init__("DiskFull", message)


class MissingTool(DriverError):
    """A program that the driver needs is not installed; the message says which package has it."""

    def __init__(self, message: str) -> None:
        super().__init__("MissingTool", message)
