"""``pileus simulate policy``: goes through the past of a monitor's appliances with policies that are there, or in a file."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from pileus.cli.client import Json
from pileus.cli.completing import complete_names
from pileus.cli.documents import read
from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.past import past
from pileus.cli.session import Session, account_option, root
from pileus.cli.table import plain
from pileus.cli.units import human_duration, parse_duration
from pileus.kernel import shape
from pileus.kernel.clock import iso, system_clock
from pileus.kernel.kind import Kind, Resource
from pileus.kernel.times import parse_time
from pileus.monitor.monitor.types import MonitorDesired
from pileus.monitor.policy.plan import check_whole, engine_policy
from pileus.monitor.policy.types import PolicyDesired
from pileus.monitor.simulation import Rules, Simulated, Would, caps, engine_policies, simulate
from pileus.registry import KINDS

POLICY, MONITOR, HISTORY, VM = (
    KINDS[name] for name in ("monitor.policy", "monitor.monitor", "monitor.history", "compute.vm")
)
COARSE = ("io.", "execution.misses", "execution.heard_at")
"""Fields that the history has only as they were when something else changed."""


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return complete_names(ctx, POLICY.name, incomplete)


@click.command("policy", no_args_is_help=True)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_names)
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="Policies that are not there yet, as for apply."
)
@click.option(
    "--from", "source", required=True, metavar="PAST",
    help="A file that `pileus history pull` made, or the postgresql:// address of the history's database.",
)  # fmt: skip
@click.option(
    "--since", default="", metavar="TIME", help="Begin so long ago (7d, 12h), or then (RFC 3339); else with the first."
)
@account_option
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people, or for programs."
)
@click.pass_obj
def command(session: Session, /, names: tuple[str, ...], files: tuple[str, ...], account: str, **options: Any) -> None:
    """Say what policies would have done, had they been there and enforced: `pileus simulate policy mend --from states.db`.

    Nothing is done, and nothing is written. What the caps of the monitor would have held is said, too.
    """
    policies = [*_known(session, names, account), *_drafted(session, files, account)]
    if not policies:
        raise usage("name a policy, or give one with --file")
    monitor = _monitor(session, policies)
    rules = _rules(session, policies, monitor)
    since = _since(options["since"])
    histories = _all(session, HISTORY, monitor["account"]) if "://" in options["source"] else []
    with past(options["source"], monitor, histories) as found:
        simulated = simulate(rules, found.moments, since, found.until)
    if not simulated.began:
        when = f" since {options['since']}" if options["since"] else ""
        raise Failure(f"{options['source'].rpartition('@')[2]} knows of no state{when}", exit_code=REFUSED)
    named = {policy.id: policy.name for policy in policies}
    if options["output"] == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(_plain(simulated, named)), indent=2).decode())
        return
    _warn(rules)
    _show(simulated, named)


def _known(session: Session, names: Sequence[str], account: str) -> list[Resource]:
    found = [session.get(POLICY, name, account) for name in names]
    return [
        Resource(
            id=each["id"], kind=POLICY.name, name=each["name"], account=each["account"],
            desired=msgspec.convert(each["desired"], PolicyDesired),
        )
        for each in found
    ]  # fmt: skip


def _drafted(session: Session, files: tuple[str, ...], account: str) -> list[Resource]:
    """Return the policies of files, checked as the cloud checks them. Raises: Invalid, Failure."""
    drafts = []
    for number, document in enumerate(each for each in read(files) if each.kind is POLICY):
        desired = shape.decode(PolicyDesired, msgspec.json.encode(document.desired), "desired")
        owner = session.account_of(POLICY, document.account or account)
        draft = Resource(id=f"draft-{number}", kind=POLICY.name, name=document.name, account=owner, desired=desired)
        check_whole(draft)
        drafts.append(draft)
    return drafts


def _monitor(session: Session, policies: Sequence[Resource]) -> Json:
    """Return the one monitor that they are of. Raises: Failure."""
    found = {
        each["id"]: each
        for each in (session.get(MONITOR, policy.desired.monitor, policy.account) for policy in policies)
    }
    if len(found) > 1:
        raise usage(
            f"these are policies of {len(found)} monitors, whose caps and pasts differ: simulate each by itself"
        )
    return next(iter(found.values()))


def _rules(session: Session, policies: Sequence[Resource], monitor: Json) -> Rules:
    labels = {}
    if any(policy.desired.labels for policy in policies):
        labels = {vm["id"]: vm["labels"] for vm in _all(session, VM, monitor["account"])}
    return Rules(
        monitor=msgspec.convert(monitor["desired"], MonitorDesired),
        policies={policy.id: policy.desired for policy in policies},
        read=engine_policies({policy.id: engine_policy(policy) for policy in policies}),
        labels=labels,
    )


def _all(session: Session, kind: Kind, account: str) -> list[Json]:
    pages = session.client.pages(root(kind), [("account", account)])
    return [item for page in pages for item in page["items"]]


def _since(text: str) -> float:
    """Return Unix seconds. Raises: Invalid."""
    if not text:
        return -math.inf
    ago_s = parse_duration(text)
    return system_clock() - ago_s if ago_s is not None else parse_time(text, "--since")


def _warn(rules: Rules) -> None:
    fields = {clause.field for policy in rules.policies.values() for clause in policy.when}
    coarse = sorted(field for field in fields if field.startswith(COARSE))
    if coarse:
        sys.stderr.write(f"warning: the past has {', '.join(coarse)} only as it was when something else changed\n")
    if rules.labels:
        sys.stderr.write("warning: labels are as they are now; VMs that are gone have none\n")


def _show(simulated: Simulated, named: dict[str, str]) -> None:
    rows = []
    for each in simulated.actions:
        act = [each.subject or "-", ",".join(each.do), _result(each)]
        rows.append([_time(each.at), each.name, named[each.policy], *act, each.cause])
    if rows:
        click.echo(plain(["TIME", "APPLIANCE", "POLICY", "SUBJECT", "DO", "RESULT", "CAUSE"], rows))
    over = human_duration(simulated.ended - simulated.began)
    seen = f"{_several(simulated.states, 'state')} of {_several(simulated.appliances, 'appliance')}"
    click.echo(f"{seen} within {over}, until {_time(simulated.ended)}")
    done = [each for each in simulated.actions if each.done_at is not None]
    late = sum(1 for each in done if each.why)
    never = len(simulated.actions) - len(done)
    held = ", ".join(f"{count} by {word}" for word, count in caps(simulated.actions).items() if count) or "none"
    total = _several(len(simulated.actions), "action")
    click.echo(f"{total}: {len(done) - late} at once, {late} later, {never} never; held: {held}")
    if simulated.unwritten:
        more = f"{simulated.unwritten} more would not have been written"
        click.echo(f"{more}: too many of one appliance were held in an hour")


def _result(would: Would) -> str:
    if would.done_at is None:
        return f"held: {would.ended}"
    return f"held until {_time(would.done_at)}" if would.why else "done"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _time(unix_s: float) -> str:
    return f"{iso(unix_s)[:19]}Z"


def _plain(simulated: Simulated, named: dict[str, str]) -> Json:
    """Return it for programs: times as RFC 3339, null for never."""
    plain_: Json = msgspec.to_builtins(simulated)
    for each in plain_["actions"]:
        each.update(at=iso(each["at"]), policy=named[each["policy"]])
        each["done_at"] = iso(each["done_at"]) if each["done_at"] is not None else None
    return {**plain_, "began": iso(simulated.began), "ended": iso(simulated.ended), "held": caps(simulated.actions)}
