"""``pileus status``: how the cloud of the current context is, in a few lines."""

from __future__ import annotations

import click

from pileus.cli.session import Session, caller


@click.command("status")
@click.pass_obj
def command(session: Session, /) -> None:
    """Say whether the cloud answers, how its hosts are, and how many VMs are as wished."""
    client = session.client
    about = client.get("/v1")
    me = client.get("/v1/whoami")
    click.echo(f"{client.server}: pileus {about['version']}, you are {caller(me)} ({me['role']})")
    if me.get("manager"):
        _count(session, "fleet.node", "nodes", [])
        return
    if me["account"]:
        _count(session, "compute.vm", "VMs", [])
        return
    hosts = client.get("/v1/infra.host")["items"]
    for host in hosts:
        ready = host["conditions"][0]
        seen = host["observed"] or {}
        state = "ready" if ready["status"] == "true" else f"{ready['reason']}: {ready['message']}"
        size = f"{seen.get('cpus', '?')} CPUs, {seen.get('memory_mib', '?')} MiB, {seen.get('accelerator') or 'no accelerator'}"
        click.echo(f"host {host['name']}: {state} ({size})")
    _count(session, "compute.vm", "VMs", [("all_accounts", "1")])


def _count(session: Session, kind: str, words: str, query: list[tuple[str, str]]) -> None:
    """Print how many resources of a kind there are and how many are not ready."""
    counts = {"true": 0, "false": 0, "unknown": 0}
    after = ""
    while True:
        page = session.client.get(f"/v1/{kind}", [*query, ("limit", "1000"), ("after", after)])
        for item in page["items"]:
            counts[item["conditions"][0]["status"]] += 1
        after = page["next"] or ""
        if not after:
            break
    total = sum(counts.values())
    wrong = total - counts["true"]
    hint = f"; see `pileus get {kind.partition('.')[2]} -A --ready false`" if wrong else ""
    click.echo(f"{total} {words if total != 1 else words.removesuffix('s')}, {counts['true']} as wished{hint}")
