"""Makes an appliance a router: the machine becomes what the document says, by the few steps that differ.

Rules come first, so that no address is up without them. A step that fails or must wait does not keep the others: it is
said in the status, and done again by ``tick``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from pileus.node.document import Document
from pileus.node.role import RoleRefused
from pileus.node.router import balancing, firewall, links, names, pair, system, tunnels
from pileus.node.router.daemons import Daemon
from pileus.node.router.links import Seen, Steps
from pileus.node.router.model import Config, Reader
from pileus.node.router.system import CommandFailed

BALANCING = "/run/pileus/haproxy.cfg"
PAIR = "/run/pileus/keepalived.conf"
SYNC = "/run/pileus/conntrackd.conf"

RETRY_S = 5.0
"""After it, what failed is tried again; a device that appears is seen at once."""

_PAIR_STATES = {"MASTER": "active", "BACKUP": "standby"}


class Router:
    """The role ``router``."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._config: Config | None = None
        self._rules = ""
        self._failed: dict[str, str] = {}
        self._waiting: list[str] = []
        self._mark: object = None
        self._converged = 0.0
        self._keyed: dict[str, tuple[int, str]] = {}
        """Tunnel's interface -> its device's number, and the settings it has."""
        self._part: object = None
        """What of the pair's settings needs keepalived to begin anew."""
        self._dns = Daemon("dnsmasq", ["dnsmasq", f"--conf-file={names.FOLDER}/settings"])
        self._balancing = Daemon("haproxy", ["haproxy", "-W", "-q", "-f", BALANCING])
        self._sync = Daemon("conntrackd", ["conntrackd", "-C", SYNC])
        argv = ["keepalived", "--dont-fork", "--vrrp", f"--use-file={PAIR}", "--pid=/run/pileus/keepalived.main"]
        self._pair = Daemon("keepalived", [*argv, "--vrrp_pid=/run/pileus/keepalived.vrrp"])

    def apply(self, document: Document) -> None:
        """Become what the document says. Raises RoleRefused."""
        config = self._reader.read(document)
        rules = firewall.ruleset(config)
        if rules != self._rules:
            try:
                system.run(["nft", "-f", "-"], rules)
            except CommandFailed as failed:
                raise RoleRefused(f"the rules cannot be: {failed}") from failed
            self._rules = rules
        self._config = config
        self._converge(config)

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """A router has its document and nothing else. Raises RoleRefused."""
        raise RoleRefused("a router takes no requests; it is configured")

    def tick(self) -> None:
        """Do what was waiting or failed, and what a device that came or went asks for; start again what died."""
        if self._config is None:
            return
        is_late = (self._waiting or self._failed) and time.monotonic() - self._converged >= RETRY_S
        if is_late or system.links_mark() != self._mark:
            self._converge(self._config)
        else:
            self._step("services", self._revive)

    def status(self) -> dict[str, Any]:
        """Return what waits and what failed, the services, members and peers, and the part in the pair.

        Nothing that changes while nothing happens: every change is told to the server.
        """
        config = self._config
        said: dict[str, Any] = {"role": "router", "waiting": list(self._waiting), "failed": dict(self._failed)}
        if config is None:
            return said
        said["services"] = {each.name: "running" if each.pid else "ended" for each in self._wanted(config)}
        said["starts"] = {each.name: each.starts for each in self._wanted(config)}
        if config.balancers:
            said["balancers"] = balancing.health(system.speak(balancing.SOCKET, "show stat\n"), config.balancers)
        if config.tunnels:
            said["tunnels"] = self._peers(config)
        if config.pair is not None:
            state = system.text_of(pair.STATE) if self._pair.pid else ""
            said["redundancy"] = _PAIR_STATES.get(state, "fault")
        return said

    def _converge(self, config: Config) -> None:
        self._failed = {}
        self._waiting = []
        steps: dict[str, Callable[[Config], None]] = {
            "kernel": self._do_kernel,
            "links": self._do_links,
            "tunnels": self._do_tunnels,
            "names": self._do_names,
            "balancers": self._do_balancers,
            "redundancy": self._do_redundancy,
        }
        for name, step in steps.items():
            self._step(name, lambda step=step: step(config))  # type: ignore[misc]
        self._mark = system.links_mark()
        self._converged = time.monotonic()

    def _step(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (CommandFailed, OSError) as failed:
            self._failed[name] = str(failed)[:1000]

    def _do_kernel(self, config: Config) -> None:
        system.set_hostname(config.hostname)
        system.set_kernel()

    def _do_links(self, config: Config) -> None:
        now = self._seen()
        for plan in (links.names, links.devices):
            if self._take(plan(config, now)):
                now = self._seen()
        self._take(links.addresses(config, now, keeps_shared=bool(self._pair.pid)))

    def _seen(self) -> Seen:
        routes = system.ask(["ip", "-4", "-json", "route", "show", "proto", "static"])
        return links.seen(system.ask(["ip", "-json", "address", "show"]), routes)

    def _take(self, steps: Steps) -> bool:
        """Take the steps and return whether there were any. Raises CommandFailed after all that can be taken."""
        self._waiting += steps.waiting
        if not steps.commands:
            return False
        try:
            system.run(["ip", "-force", "-batch", "-"], "\n".join(steps.commands) + "\n")
        finally:
            for device, address in steps.added:
                system.announce(device, address)
        return True

    def _do_tunnels(self, config: Config) -> None:
        for tunnel in config.tunnels:
            wanted = (system.device_number(tunnel.interface), tunnels.settings(tunnel))
            if wanted[0] and self._keyed.get(tunnel.interface) != wanted:
                system.run(["wg", "syncconf", tunnel.interface, "/proc/self/fd/0"], wanted[1])
                self._keyed[tunnel.interface] = wanted

    def _do_names(self, config: Config) -> None:
        if not config.networks:
            self._dns.stop()
            return
        texts = {"leases": names.leases, "hosts": names.hosts, "resolvers": names.resolvers}
        changed = [system.put(f"{names.FOLDER}/{name}", text(config)) for name, text in texts.items()]
        if system.put(f"{names.FOLDER}/settings", names.settings(config)):
            self._dns.stop()
        elif any(changed):
            self._dns.tell(signal.SIGHUP)
        self._dns.start()

    def _do_balancers(self, config: Config) -> None:
        if not config.balancers:
            self._balancing.stop()
            return
        if system.put(BALANCING, balancing.settings(config.balancers)) and self._balancing.pid:
            # A new one takes the listening sockets over and the old one goes on with the connections it has.
            self._balancing.tell(signal.SIGUSR2)
        self._balancing.start()

    def _do_redundancy(self, config: Config) -> None:
        if config.pair is None:
            self._pair.stop()
            self._sync.stop()
            return
        if system.device_number(links.guest_interface(config)) == 0:
            return
        if system.put(SYNC, pair.conntrackd(config, config.pair)):
            self._sync.stop()
        self._sync.start()
        part = (links.guest_interface(config), config.pair._replace(priority=0))
        if system.put(PAIR, pair.keepalived(config, config.pair)):
            if part != self._part:
                # Its end hands the addresses over.
                self._pair.stop()
            self._pair.tell(signal.SIGHUP)
        self._part = part
        self._pair.start()

    def _revive(self) -> None:
        assert self._config is not None
        for each in self._wanted(self._config):
            each.start()

    def _wanted(self, config: Config) -> list[Daemon]:
        wanted = {
            self._dns: bool(config.networks),
            self._balancing: bool(config.balancers),
            self._sync: config.pair is not None,
            self._pair: config.pair is not None,
        }
        return [daemon for daemon, is_wanted in wanted.items() if is_wanted]

    @staticmethod
    def _peers(config: Config) -> dict[str, dict[str, Any]]:
        try:
            return tunnels.health(system.run(["wg", "show", "all", "dump"]), config.tunnels, int(time.time()))
        except CommandFailed:
            return {}
