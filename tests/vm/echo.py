"""Asks a machine for an echo from where it is run (ICMP, RFC 792): for namespaces of a machine that has no ping."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
TRIES, WAIT_S = 10, 0.5


def checksum(message: bytes) -> int:
    """Return the Internet checksum of a message of even length (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answers(address: str, size_bytes: int) -> bool:
    """Tell whether the machine answers an echo request of this size, which may not be cut into fragments."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        own = os.getpid() & 0xFFFF
        for number in range(TRIES):
            body = bytes(size_bytes)
            plain = struct.pack("!BBHHH", 8, 0, 0, own, number) + body
            raw.sendto(struct.pack("!BBHHH", 8, 0, checksum(plain), own, number) + body, (address, 0))
            end = time.monotonic() + WAIT_S
            while (left := end - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    packet, (sender, _) = raw.recvfrom(65535)
                except TimeoutError:
                    break
                if sender == address and packet[20] == 0 and packet[24:26] == struct.pack("!H", own):
                    return True
    return False


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1], int(sys.argv[2])) else 1)
