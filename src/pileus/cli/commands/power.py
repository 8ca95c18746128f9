"""``pileus start|stop|reboot|pause|resume vm NAME...``: changes of a VM's wish."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.session import (
    Session,
    a,
    account_option,
    kind_argument,
    names_argument,
    noun,
    root,
    wait_options,
)
from pileus.cli.waiting import Goal, is_ready, wait_for
from pileus.kernel.kind import Kind

Change = Callable[[Json], Json]
"""From a VM to the part of its wish that changes; empty when it is as wished already."""


def _verb(word: str, text: str, done: str, change: Change) -> click.Command:
    """Return the command of a verb."""

    @click.command(word, help=text, no_args_is_help=True)
    @kind_argument
    @names_argument(required=True)
    @account_option
    @wait_options
    @click.pass_obj
    def command(session: Session, /, kind: Kind, names: tuple[str, ...], **options: Any) -> None:
        if kind.name != "compute.vm":
            raise click.UsageError(f"only a vm can {word}, not {a(kind.short)}: `pileus {word} vm NAME`")
        found = [session.get(kind, name, options["account"]) for name in names]
        changes = [(vm, change(vm)) for vm in found]
        for vm in (vm for vm, part in changes if not part):
            sys.stdout.write(f"{noun(kind, vm)} is {done} already\n")
        changed = [_patch(session, kind, vm, part) for vm, part in changes if part]
        if changed and options["wait"]:
            wait_for(session, kind, changed, Goal(text=done, met=_booted), options["timeout"])
        for vm in changed:
            sys.stdout.write(f"{noun(kind, vm)} {'is' if options['wait'] else 'shall be'} {done}\n")

    return command


def _patch(session: Session, kind: Kind, vm: Json, change: Json) -> Json:
    body: Json = {"desired": change, "revision": vm["revision"]} if "boot_serial" in change else {"desired": change}
    # A raised number must be raised from what was read; the server refuses it when another raised it meanwhile.
    query = [("account", vm["account"])]
    return session.client.send("PATCH", f"{root(kind)}/{segment(vm['id'])}", query, body)


def _booted(vm: Json) -> bool:
    observed = vm["observed"] or {}
    serial = vm["desired"]["boot_serial"]
    running = vm["desired"]["power"] == "running"
    return is_ready(vm) and (not running or observed.get("boot_serial", 0) >= serial)


def _start(vm: Json) -> Json:
    desired, power = vm["desired"], (vm["observed"] or {}).get("power")
    if desired["power"] != "running":
        return {"power": "running"}
    if power == "running":
        return {}
    # A guest that powered itself off leaves the wish "running": only a raised serial boots it again.
    # What is being started, or is on a silent host, may run by the time it is heard: a raised serial would reset it.
    return {"boot_serial": desired["boot_serial"] + 1} if power == "stopped" else {"power": "running"}


def _reboot(vm: Json) -> Json:
    return {"power": "running", "boot_serial": vm["desired"]["boot_serial"] + 1}


start = _verb("start", "Start VMs, also those whose guest powered itself off.", "running", _start)
stop = _verb("stop", "Shut VMs down: the guest is asked, then ended.", "stopped", lambda vm: {"power": "stopped"})
reboot = _verb("reboot", "Boot VMs again.", "booted again", _reboot)
pause = _verb("pause", "Stop the virtual CPUs of VMs; memory is kept.", "paused", lambda vm: {"power": "paused"})
resume = _verb("resume", "Let paused VMs run on.", "running", lambda vm: {"power": "running"})
