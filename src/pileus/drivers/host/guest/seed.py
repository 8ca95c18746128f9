"""What a NoCloud seed says, as text: the files of it, from checked values only. It knows no disk and no program.

Every value is quoted, because YAML 1.1 reads an unquoted MAC or a host name of digits as a number, and consists of
characters that need no escape within quotes, so that a tenant's text never becomes a line of its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Seed, SeedNic

USER_DATA_BYTES_MAX = 1 << 20
"""Far above what clouds take (EC2: 16 KiB), and small in a guest of 128 MiB that keeps a copy in memory."""

OVF_ENVIRONMENT = "ovf-env.xml"
"""Source: DMTF DSP0243, transport ``iso``: this file in the root of a CD."""

_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_SSH_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60}) ([A-Za-z0-9+/]{16,16384}={0,3})(?: ([^\r\n]*))?")
_COMMENT = re.compile(r"[A-Za-z0-9@._+-]{1,128}")
_HOSTNAME_MAX = 64


def seed_files(seed: Seed) -> dict[str, bytes]:
    """Return the seed's files by name. ``network-config`` is there only when there are NICs to set up.

    Raises: DriverError (BadSeed). Source: cloud-init, datasource NoCloud and network-config version 2.
    """
    meta = [f"instance-id: {_quoted(seed.instance_id, _INSTANCE_ID, 'instance id')}"]
    if len(seed.hostname) > _HOSTNAME_MAX:
        raise _bad("host name", seed.hostname)
    meta.append(f"local-hostname: {_quoted(seed.hostname, _HOSTNAME, 'host name')}")
    if seed.ssh_keys:
        meta.append("public-keys:")
        meta += [f'  - "{_ssh_key(text)}"' for text in seed.ssh_keys]
    files = {"meta-data": _text(meta), "user-data": _content(seed.user_data, "user data")}
    if seed.ovf_environment:
        files[OVF_ENVIRONMENT] = _content(seed.ovf_environment, "OVF environment")
    if seed.nics:
        lines = ["version: 2", "ethernets:"]
        for number, nic in enumerate(seed.nics):
            lines += _nic(number, nic)
        files["network-config"] = _text(lines)
    return files


def _nic(number: int, nic: SeedNic) -> Iterator[str]:
    addresses = [_interface(text) for text in nic.addresses]
    yield f'  "nic{number}":'
    yield "    match:"
    yield f"      macaddress: {_quoted(nic.mac, _MAC, 'MAC').lower()}"
    if not addresses:
        yield "    dhcp4: true"
        return
    yield "    addresses:"
    yield from (f'      - "{address}"' for address in addresses)
    if nic.gateway is not None:
        gateway = _address(nic.gateway)
        yield "    routes:"
        yield f'      - to: "{"0.0.0.0/0" if gateway.version == 4 else "::/0"}"'
        yield f'        via: "{gateway}"'
        if not any(gateway in address.network for address in addresses):
            yield "        on-link: true"
    if nic.dns:
        yield "    nameservers:"
        yield "      addresses:"
        yield from (f'        - "{_address(text)}"' for text in nic.dns)


def _content(text: str, what: str) -> bytes:
    try:
        content = text.encode()
    except UnicodeEncodeError as exc:
        raise DriverError("BadSeed", f"the {what} is not valid text; give it as UTF-8") from exc
    if len(content) > USER_DATA_BYTES_MAX:
        raise DriverError("BadSeed", f"the {what} has {len(content)} bytes; at most {USER_DATA_BYTES_MAX} are taken")
    return content


def _ssh_key(text: str) -> str:
    match = _SSH_KEY.fullmatch(text.strip())
    if match is None:
        raise DriverError("BadSeed", "an SSH key is not a line such as 'ssh-ed25519 AAAA… name'")
    kind, key, comment = match.groups()
    # A comment means nothing to the guest, so an unusual one is left out rather than quoted.
    return f"{kind} {key} {comment}" if comment and _COMMENT.fullmatch(comment) else f"{kind} {key}"


def _interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    try:
        if "/" not in text or "%" in text:
            raise _bad("address with prefix length", text)
        return ipaddress.ip_interface(text)
    except ValueError as exc:
        raise _bad("address with prefix length", text) from exc


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        if "%" in text:
            raise _bad("address", text)
        return ipaddress.ip_address(text)
    except ValueError as exc:
        raise _bad("address", text) from exc


def _quoted(text: str, pattern: re.Pattern[str], what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise _bad(what, text)
    return f'"{text}"'


def _bad(what: str, text: str) -> DriverError:
    return DriverError("BadSeed", f"{text[:80]!r} is no {what}")


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
