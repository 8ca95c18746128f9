"""One change of the kernel's network configuration, in the namespace of the calling thread (rtnetlink(7), netlink(7))."""

from __future__ import annotations

import errno
import socket
import struct

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLMSG_ERROR = 2


def change(kind: int, flags: int, body: bytes) -> int:
    """Ask for a change, and return its errno once the kernel has said so; 0: it is done."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body)
        answer, code = struct.unpack_from("=4xH10xi", netlink.recv(65_536))
    return -int(code) if answer == NLMSG_ERROR else errno.EPROTO
