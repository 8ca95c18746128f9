"""The WireGuard devices of a router, as text for ``wg``. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pileus.node.router.model import Tunnel

FRESH_S = 200
"""Peers that exchange anything shake hands every 120 s, and a session ends after 180 s (WireGuard paper, 6.1)."""


def settings(tunnel: Tunnel) -> str:
    """Return the device's configuration for ``wg syncconf``; it holds the private key."""
    return "".join(f"{line}\n" for line in _lines(tunnel))


def health(dump: str, tunnels: tuple[Tunnel, ...], now_s: int) -> dict[str, dict[str, str]]:
    """Return, for each tunnel, whether each peer is ``up``: it shook hands within FRESH_S.

    Source: wg(8): interface, public key, preshared key, endpoint, allowed, handshake (Unix time), received, sent, …
    """
    found: dict[str, dict[str, str]] = {tunnel.id: {} for tunnel in tunnels}
    ids = {tunnel.interface: tunnel.id for tunnel in tunnels}
    for line in dump.splitlines():
        fields = line.split("\t")
        if len(fields) == 9 and fields[0] in ids:
            shaken = int(fields[5])
            found[ids[fields[0]]][fields[1]] = "up" if shaken and now_s - shaken < FRESH_S else "down"
    return found


def _lines(tunnel: Tunnel) -> Iterator[str]:
    yield "[Interface]"
    yield f"PrivateKey = {tunnel.private_key}"
    yield f"ListenPort = {tunnel.port}"
    for peer in tunnel.peers:
        yield "[Peer]"
        yield f"PublicKey = {peer.key}"
        if peer.allowed:
            yield f"AllowedIPs = {', '.join(peer.allowed)}"
        if peer.endpoint:
            yield f"Endpoint = {peer.endpoint}"
        if peer.keepalive_s:
            yield f"PersistentKeepalive = {peer.keepalive_s}"
