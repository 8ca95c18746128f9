"""Programs on devices without links: as classifiers of traffic control, for kernels before 6.6, which have no TCX.

A classifier has no file that keeps it: it stays with its device, and its name says which program it is. Everything here
runs in a thread that is in the switch's namespace. Source: tc-bpf(8), linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterator

from pileus.drivers.host import netlink
from pileus.drivers.host.netlink import NLM_F_REQUEST, NLMSG_ERROR
from pileus.node.ebpf import kernel

RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 36, 37, 44, 45, 46
NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_CREATE = 0x300, 0x200, 0x100, 0x400
NLMSG_DONE = 3
TC_H_CLSACT, TC_H_CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
PARENTS = {kernel.ATTACH_TCX_INGRESS: 0xFFFFFFF2, kernel.ATTACH_TCX_EGRESS: 0xFFFFFFF3}
TCA_KIND, TCA_OPTIONS, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 1, 2, 6, 7, 8
DIRECT_ACTION = 1
"""What the program returns is what happens to the packet."""
HANDLE = 1
ALL_PROTOCOLS = socket.htons(0x0003)
_TCMSG = struct.Struct("=BxHiIII")


def put(device: int, attach: int, name: str, program: int, digest: str) -> None:
    """Let the program with this digest run as ``name`` on the device, in place of the one that does. Raises OSError."""
    kind = _attribute(TCA_KIND, b"clsact\0")
    flags = NLM_F_CREATE | NLM_F_EXCL
    _ask(RTM_NEWQDISC, flags, _TCMSG.pack(0, 0, device, TC_H_CLSACT_HANDLE, TC_H_CLSACT, 0) + kind, errno.EEXIST)
    options = (
        _attribute(TCA_BPF_FD, struct.pack("=I", program))
        + _attribute(TCA_BPF_NAME, digest.encode() + b"\0")
        + _attribute(TCA_BPF_FLAGS, struct.pack("=I", DIRECT_ACTION))
    )
    body = _place(device, attach, name) + _attribute(TCA_KIND, b"bpf\0") + _attribute(TCA_OPTIONS, options)
    _ask(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body)


def drop(device: int, attach: int, name: str) -> None:
    """Take the program away; it or the device is gone: nothing. Raises OSError."""
    body = _place(device, attach, name) + _attribute(TCA_KIND, b"bpf\0")
    _ask(RTM_DELTFILTER, 0, body, errno.ENOENT, errno.ENODEV, errno.EINVAL)
    if not any(list(_found(device, each)) for each in PARENTS):
        place = _TCMSG.pack(0, 0, device, TC_H_CLSACT_HANDLE, TC_H_CLSACT, 0)
        _ask(RTM_DELQDISC, 0, place, errno.ENOENT, errno.ENODEV, errno.EINVAL)


def digest_of(device: int, attach: int, name: str) -> str:
    """Return the digest of the program that runs as ``name`` on the device; "" for none."""
    digests = [digest for preference, digest in _found(device, attach) if preference == _preference(name)]
    return max(digests, default="")  # a preference is told twice: as such, and with its program


def _preference(name: str) -> int:
    """Return the place of a program among those of a device: two of them have the same once in 65,535 times."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big") or 1


def _place(device: int, attach: int, name: str) -> bytes:
    return _TCMSG.pack(0, 0, device, HANDLE, PARENTS[attach], _preference(name) << 16 | ALL_PROTOCOLS)


def _attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)


def _attributes(content: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(content):
        length, kind = struct.unpack_from("=HH", content, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = content[at + 4 : at + length]
        at += length + -length % 4
    return found


def _ask(kind: int, flags: int, body: bytes, *accepted: int) -> None:
    code = netlink.change(kind, flags, body)
    if code and code not in accepted:
        raise OSError(code, f"a classifier cannot be changed: {os.strerror(code)}")


def _found(device: int, attach: int) -> Iterator[tuple[int, str]]:
    """Yield preference and digest of each classifier on the device; those of others have none."""
    body = _TCMSG.pack(0, 0, device, 0, PARENTS[attach], 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        asked.send(struct.pack("=IHHII", 16 + len(body), RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            answer, at = asked.recv(65_536), 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    return
                (ranked,) = struct.unpack_from("=16xI", answer, at + 16)
                options = _attributes(_attributes(answer[at + 36 : at + length]).get(TCA_OPTIONS, b""))
                yield ranked >> 16, options.get(TCA_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
                at += length + -length % 4
