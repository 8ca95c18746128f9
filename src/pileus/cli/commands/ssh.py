"""``pileus ssh vm/web``: the system's ssh, with ``pileus forward --stdio`` as its way to the VM."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from pileus.cli import contexts
from pileus.cli.client import Json
from pileus.cli.failure import REFUSED, Failure
from pileus.cli.session import Session, account_option
from pileus.cli.target import VM, split, vm_argument
from pileus.kernel.kind import is_name

USER = "root"
"""Whom the image tiny lets in; images of distributions have users of their own."""


@click.command("ssh", no_args_is_help=True)
@vm_argument("[-- [SSH OPTION]... [COMMAND]...]")
@click.option("-l", "--login", default="", metavar="USER", help=f"Log in as this user; {USER} when left out.")
@click.option("-p", "--port", type=click.IntRange(1, 65_535), default=22, show_default=True, help="The VM's port.")
@click.option("--network", default="", metavar="NAME", help="Through this network of the VM, if it is in several.")
@account_option
@click.pass_obj
def command(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Log in to a VM, or run a command in it: `pileus ssh vm/web -- uptime`.

    A VM that started less than two minutes ago and does not answer is asked again until it does: it may still boot.
    What follows -- is what would follow the host in ssh's own command line, options included. The exit code is ssh's:
    that of the command, or 255 when ssh could not connect.
    """
    who, at, where = words[0].rpartition("@")
    name, rest = split((where, *words[1:]), "a shell")
    program = shutil.which("ssh")
    if program is None:
        raise Failure("there is no ssh client on this machine", exit_code=REFUSED, hint="apt install openssh-client")
    vm = session.get(VM, name, options["account"])
    user = options["login"] or (who if at else USER)
    if not vm["desired"]["ssh_keys"] and not vm["desired"]["user_data"]:
        sys.stderr.write(f"vm {vm['name']} was made without --ssh-key; it may know no key of yours\n")
    proxy = _proxy(session, vm, options["port"], options["network"])
    sys.stderr.flush()
    os.execv(program, ["ssh", *_options(session, vm, proxy), "-l", user, _alias(vm), *rest])  # noqa: S606 - no shell is wanted


def _options(session: Session, vm: Json, proxy: str) -> list[str]:
    settings = {
        "ProxyCommand": proxy.replace("%", "%%"),
        "HostKeyAlias": vm["id"],
        "UserKnownHostsFile": '"' + str(_known_hosts(session)).replace("%", "%%") + '"',
        "StrictHostKeyChecking": "accept-new",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _proxy(session: Session, vm: Json, port: int, network: str) -> str:
    """Return this program's command line that connects its standard streams to the VM's port."""
    words = [sys.executable, "-P", "-m", "pileus.cli.main", "--context", session.context_name, "forward"]
    words += [f"vm/{vm['id']}", "--account", vm["account"], "--stdio", str(port), "--booting"]
    return shlex.join([*words, "--network", network] if network else words)


def _alias(vm: Json) -> str:
    """Return the VM's name for ssh and its configuration, which can have settings for ``*.pileus``."""
    if not is_name(vm["name"]) or not is_name(vm["account"]):  # it becomes a word of ssh's command line
        raise Failure(f"the server says a name that no VM may have: {vm['name']!r}", exit_code=REFUSED)
    return f"{vm['name']}.{vm['account']}.pileus"


def _known_hosts(session: Session) -> Path:
    """Return the context's own file of host keys: a VM's id is in no other. Raises: Failure."""
    folder = contexts.path().parent / "known_hosts"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"cannot make {folder}: {error.strerror}", exit_code=REFUSED) from None
    return folder / quote(session.context_name, safe="")
