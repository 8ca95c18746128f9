"""``pileus attach vm/web --network back`` and ``detach``: NICs and disks of a VM come and go, also while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pileus.cli.client import Json, segment
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.session import Session, account_option, noun, root, wait_options
from pileus.cli.target import VM, split, vm_argument
from pileus.cli.waiting import Goal, is_ready, wait_for
from pileus.registry import KINDS

F = TypeVar("F", bound=Callable[..., Any])
PORT, NETWORK, VOLUME = KINDS["network.port"], KINDS["network.network"], KINDS["storage.volume"]
TRIES = 5
"""A host's reports may come between reading a VM and changing it."""


def _what(address_help: str) -> Callable[[F], F]:
    """Add --network, --address and --volume."""

    def add(function: F) -> F:
        function = click.option("--volume", default="", metavar="NAME", help="A volume.")(function)
        function = click.option("--address", default="", metavar="ADDRESS", help=address_help)(function)
        return click.option("--network", default="", metavar="NAME", help="A NIC in this network.")(function)

    return add


@click.command("attach", no_args_is_help=True)
@vm_argument()
@_what("The NIC's IPv4 address; left out: the next free one.")
@account_option
@wait_options
@click.pass_obj
def attach(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Give a VM a further NIC or disk; a running guest gets it at once."""
    part = _Part(session, words, options)
    vm = part.change(part.with_volume) if part.volume else part.change(part.with_nic)
    part.tell(vm, "attached to")


@click.command("detach", no_args_is_help=True)
@vm_argument()
@_what("Which NIC, when the VM has several in the network.")
@account_option
@wait_options
@click.pass_obj
def detach(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Take a NIC or a disk from a VM; a running guest is asked to let go of it."""
    part = _Part(session, words, options)
    vm = part.change(part.without_volume) if part.volume else part.change(part.without_nic)
    part.tell(vm, "detached from")


class _Part:
    """What comes or goes, and the VM."""

    def __init__(self, session: Session, words: tuple[str, ...], options: dict[str, Any]) -> None:
        name, rest = split(words, "NICs and disks to attach")
        self.network, self.volume, self.address = options["network"], options["volume"], options["address"]
        if rest or bool(self.network) == bool(self.volume):
            raise usage("say one thing: --network NAME or --volume NAME")
        if self.address and not self.network:
            raise usage("--address is for --network")
        self._session, self._name, self._options = session, name, options

    def change(self, wished: Callable[[Json], Json]) -> Json:
        """Return the VM after its wish was changed, however often its host reports meanwhile."""
        for left in reversed(range(TRIES)):
            vm = self._session.get(VM, self._name, self._options["account"])
            body = {"desired": wished(vm), "revision": vm["revision"]}
            try:
                query = [("account", vm["account"])]
                return self._session.client.send("PATCH", f"{root(VM)}/{segment(vm['id'])}", query, body)
            except Failure as failure:
                if failure.code != "stale-revision" or not left:
                    raise
        raise AssertionError

    def tell(self, vm: Json, done: str) -> None:
        """Wait if that is wished, and say what is."""
        what = f"network {self.network}" if self.network else f"volume {self.volume}"
        if self._options["wait"]:
            goal = Goal(text=f"as wished, with {what} {done} it", met=_has_its_parts)
            (vm,) = wait_for(self._session, VM, [vm], goal, self._options["timeout"])
        sys.stdout.write(f"{what} {'is' if self._options['wait'] else 'shall be'} {done} {noun(VM, vm)}\n")

    def with_nic(self, vm: Json) -> Json:
        """Return the NICs with a further one."""
        return {"nics": [*vm["desired"]["nics"], {"network": self.network, "address": self.address}]}

    def with_volume(self, vm: Json) -> Json:
        """Return the volumes with a further one. Raises: Failure when the VM has it."""
        known = vm["desired"]["volumes"]
        if self._position(known, "volume", self._both(VOLUME, self.volume, vm)) is not None:
            raise usage(f"volume {self.volume} is attached to {noun(VM, vm)} already")
        return {"volumes": [*known, {"volume": self.volume}]}

    def without_volume(self, vm: Json) -> Json:
        """Return the volumes without one. Raises: Failure when the VM does not have it."""
        known = vm["desired"]["volumes"]
        position = self._position(known, "volume", self._both(VOLUME, self.volume, vm))
        if position is None:
            has = ", ".join(each["volume"] for each in known) or "none but its root volume"
            raise Failure(f"{noun(VM, vm)} has no volume {self.volume}; it has {has}", exit_code=NOT_FOUND)
        return {"volumes": [*known[:position], *known[position + 1 :]]}

    def without_nic(self, vm: Json) -> Json:
        """Return the NICs without one; those like it get the addresses that they have, so that it is clear which goes.

        Raises: Failure when there is none, or several.
        """
        nics, words = vm["desired"]["nics"], self._both(NETWORK, self.network, vm)
        addresses = [nic["address"] or self._address(vm, position) for position, nic in enumerate(nics)]
        alike = [position for position, nic in enumerate(nics) if nic["network"] in words]
        meant = [position for position in alike if self.address in ("", addresses[position])]
        which = f"network {self.network}" + (f" with address {self.address}" if self.address else "")
        has = ", ".join(f"{nic['network']} ({address})" for nic, address in zip(nics, addresses, strict=True)) or "none"
        if not meant:
            raise Failure(f"{noun(VM, vm)} has no NIC in {which}; it has {has}", exit_code=NOT_FOUND)
        if len(meant) > 1:
            raise usage(f"{noun(VM, vm)} has {len(meant)} NICs in {which}: {has}", "say which with --address")
        kept = [
            {**nic, "address": addresses[position]} if position in alike else nic for position, nic in enumerate(nics)
        ]
        return {"nics": [nic for position, nic in enumerate(kept) if position != meant[0]]}

    def _address(self, vm: Json, position: int) -> str:
        """Return the address that a NIC got; empty before it got one."""
        ports = vm["assigned"]["ports"]
        if position >= len(ports):
            return ""
        assigned = self._session.get(PORT, ports[position], vm["account"])["assigned"]
        return assigned["address"] if assigned else ""

    def _both(self, kind: Any, word: str, vm: Json) -> tuple[str, str]:
        """Return name and id of a resource in the VM's account. Raises: Failure when there is none."""
        found = self._session.get(kind, word, vm["account"])
        return found["name"], found["id"]

    @staticmethod
    def _position(items: list[Json], field: str, words: tuple[str, str]) -> int | None:
        return next((position for position, item in enumerate(items) if item[field] in words), None)


def _has_its_parts(vm: Json) -> bool:
    """Tell whether the VM is ready with exactly the parts wished; what a machine that is off has shows at its start."""
    assigned, observed, desired = vm["assigned"], vm["observed"] or {}, vm["desired"]
    decided = len(assigned["ports"]) == len(desired["nics"]) and len(assigned["volumes"]) == 1 + len(desired["volumes"])
    if not decided or not is_ready(vm):
        return False
    live = observed.get("power") in ("running", "paused")
    return not live or all(set(observed[word]) == set(assigned[word]) for word in ("ports", "volumes"))
