"""``pileus describe``: everything about one resource, laid out for people, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.failure import BUG, NOT_FOUND, REFUSED, Failure
from pileus.cli.fields import walk
from pileus.cli.output import names_of
from pileus.cli.progress import clean
from pileus.cli.session import Query, Session, account_option, kind_argument, names_argument, root
from pileus.cli.table import age, coloured, plain, state_of
from pileus.cli.units import human_duration, human_number
from pileus.cli.waiting import is_refused
from pileus.kernel.clock import iso, system_clock
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import is_id
from pileus.kernel.kind import Empty, Kind
from pileus.registry import KINDS

EVENTS = 10
WITH_USAGE = ("tenancy.vdc", "infra.host", "storage.pool")

OWNERS = {
    "monitor.state": "monitor.monitor",
    "monitor.watcher": "monitor.monitor",
    "monitor.scan": "monitor.signature",
}
"""Kind -> the kind whose resources own it, where that is neither an account nor a VM."""

_FOR_MACHINES = frozenset({"told", "boot_serial"})
"""Fields that server and agent tell each other, and that say nothing to people."""

_TABLED = {"fleet.rollout": frozenset({"assigned.waves", "observed.results"})}
"""Parts of kinds that are one table."""

_SIZES = frozenset({"vcpus", "memory_mib", "disk_gib"})
"""Nothing has none of these: 0 means that it is said elsewhere, or not known."""

_NEXT: dict[tuple[str, str], tuple[str, str]] = {
    ("infra.host", "NoAgent"): ("join-token {name}", "let an agent join as this host"),
    ("infra.host", "HostSilent"): ("join-token {name}", "let an agent join as this host"),
    ("storage.image", "AwaitingUpload"): ("create image {name}{account} --file DISK", "upload its disk"),
    ("monitor.policy", "Observed"): ("patch {target} --mode enforce", "let it act"),
    ("monitor.action", "Asking"): ("patch {target} --approved yes", "let it be done; no: it is not"),
    ("monitor.signature", "BadRules"): ("patch {target} --rules FILE", "give it other rules"),
}
"""By kind and reason: a command that fits, and what it is for."""

_TIMES = frozenset({"at", "end", "ends", "room_by", "since", "start", "start_by", "start_from", "starts"})
"""Words of times, in Unix seconds, besides those that end in ``_at``; 0 is none."""

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


@click.command("describe", no_args_is_help=True)
@kind_argument
@names_argument(required=True)
@account_option
@click.pass_obj
def command(session: Session, /, kind: Kind, names: tuple[str, ...], account: str) -> None:
    """Show everything about a resource: wish, decision, fact, conditions, counters, events, what to do next."""
    for position, name in enumerate(names):
        resource = session.get(kind, name, account)
        if position:
            sys.stdout.write("\n")
        sys.stdout.write("\n".join(_Sheet(session, kind, resource).lines()) + "\n")


class _Sheet:
    def __init__(self, session: Session, kind: Kind, resource: Json) -> None:
        self._client = session.client
        self._kind = kind
        self._resource = resource
        self._path = f"{root(kind)}/{segment(resource['id'])}"
        self._query: Query = [("account", resource["account"])]
        self._names = self._learn()

    def lines(self) -> Iterator[str]:
        """Yield the lines of the sheet."""
        yield from self._head()
        if "desired" not in self._kind.private:
            yield from self._section("Wish (desired)", self._resource["desired"], _unsaid(self._kind))
        if self._kind.assigned is not Empty and "assigned" not in self._kind.private:
            yield from self._section("Decision (assigned)", self._plain("assigned"))
        if self._kind.observed is not Empty:
            yield from self._section("Fact (observed)", self._plain("observed"))
        yield from self._results()
        yield from self._conditions()
        yield from self._usage()
        yield from self._counters()
        yield from self._events()
        yield from self._next()

    def _head(self) -> Iterator[str]:
        resource = self._resource
        labels = " ".join(f"{key}={value}" for key, value in resource["labels"].items())
        rows = [
            ("Name", resource["name"]),
            ("Kind", f"{self._kind.name}, {self._kind.summary[:1].lower()}{self._kind.summary[1:]}"),
            ("Account", resource["account"] or ("" if self._kind.scope == "account" else "none: the cloud's own")),
            ("Belongs to", self._owner()),
            ("Id", resource["id"]),
            ("Labels", labels),
            ("Created", f"{resource['created_at']} ({age(resource['created_at'])} ago)"),
            ("Deleting", resource["deleting_at"] and f"since {resource['deleting_at']}"),
            ("Changed", f"{resource['generation'] - 1} times" if resource["generation"] > 1 else ""),
        ]
        for word, value in rows:
            if value:
                yield f"{word + ':':<12} {clean(value)}"

    def _owner(self) -> str:
        owner = self._resource["owner"]
        if owner in ("", self._resource["account_id"]):
            return ""
        return f"{KINDS[self._owners].short} {self._name(owner)}" if owner in self._names else str(owner)

    @property
    def _owners(self) -> str:
        return OWNERS.get(self._kind.name, "compute.vm")

    def _section(self, title: str, section: Json | None, unsaid: frozenset[str] = frozenset()) -> Iterator[str]:
        yield from _title(title)
        rows = [row for row in _rows(section or {}, "", self._name) if row[1] != "0" or row[0] not in unsaid]
        width = max((len(word) for word, _ in rows), default=0)
        for word, value in rows:
            first, *more = value.split("\n") if value else [""]
            yield f"  {word:<{width}}  {clean(first)}".rstrip()
            for line in more:
                yield f"  {'':<{width}}  {clean(line)}".rstrip()
        if not rows:
            yield "  nothing yet"

    def _plain(self, section: str) -> Json:
        """Return a section without what has a table of its own."""
        tabled = _TABLED.get(self._kind.name, frozenset())
        return {
            word: value for word, value in (self._resource[section] or {}).items() if f"{section}.{word}" not in tabled
        }

    def _results(self) -> Iterator[str]:
        if self._kind.name != "fleet.rollout":
            return
        yield from _title("Nodes")
        rows = [
            [one["name"], one["account"], str(one["wave"] + 1), one["state"], one["failure"] or one["message"]]
            for one in (self._resource["observed"] or {}).get("results", ())
        ]
        yield from _table(("NODE", "ACCOUNT", "WAVE", "STATE", "WHY"), rows)

    def _conditions(self) -> Iterator[str]:
        yield from _title("Conditions")
        rows = [
            [one["type"], one["status"], one["reason"], age(one["since"]), one["message"]]
            for one in self._resource["conditions"]
        ]
        yield from _table(("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)

    def _usage(self) -> Iterator[str]:
        answer = self._ask("usage") if self._kind.name in WITH_USAGE else None
        if answer:
            yield from _title("Usage")
            rows = []
            for limit in answer["limits"]:
                used, capacity = limit["used"], limit["capacity"]
                share = f"{100 * used // capacity} %" if capacity else "-"
                number = [human_number(limit["name"], one) for one in (used, capacity)]
                rows.append([limit["name"], *number, share])
            yield from _table(("LIMIT", "USED", "OF", "SHARE"), rows)

    def _counters(self) -> Iterator[str]:
        answer = self._ask("counters") if self._kind.host_bound else None
        if answer and answer.get("counters"):
            yield from _title(f"Counters ({age(answer['at'])} ago)")
            rows = [[name, human_number(name, value)] for name, value in answer["counters"].items()]
            yield from _table(("COUNTER", "VALUE"), rows)

    def _events(self) -> Iterator[str]:
        answer = self._ask("events", ("limit", str(EVENTS)))
        if answer and answer["items"]:
            yield from _title("Last events")
            rows = [[age(one["at"]), one["type"], one["reason"], one["message"]] for one in answer["items"]]
            yield from _table(("AGE", "TYPE", "REASON", "MESSAGE"), rows)

    def _next(self) -> Iterator[str]:
        steps = list(next_steps(self._kind, self._resource))
        if steps:
            yield from _title("What to do next")
            width = max(len(step) for step, _ in steps)
            for step, why in steps:
                yield f"  {step:<{width}}  {why}"

    def _ask(self, part: str, *more: tuple[str, str]) -> Json | None:
        """Return a part that not every server or right gives; None when it does not."""
        try:
            return self._client.get(f"{self._path}/{part}", [*self._query, *more])
        except Failure as failure:
            if failure.exit_code not in (NOT_FOUND, REFUSED, BUG):
                raise
            return None

    def _name(self, id: str) -> str:
        return f"{self._names[id]} ({id})" if id in self._names else id

    def _learn(self) -> dict[str, str]:
        """Return the names of the ids in what was decided, where the field's word is a kind's."""
        wanted = {self._owners: {self._resource["owner"]} - {"", self._resource["account_id"]}}
        sections = (self._resource["assigned"] or {}, self._resource["observed"] or {})
        for section in sections:
            for word, value in section.items():
                ref = _kind_of(word)
                some = value if isinstance(value, list) else [value]
                if ref:
                    wanted.setdefault(ref, set()).update(one for one in some if isinstance(one, str) and is_id(one))
        found: dict[str, str] = {}
        for ref, ids in wanted.items():
            scope = self._query if KINDS[ref].scope != "cluster" else []
            learned = names_of(self._client, ref, sorted(ids), scope)
            found.update({id: name for id, name in learned.items() if id != name})
        return found


def _kind_of(word: str) -> str:
    try:
        return KINDS.find(word).name
    except NotFound:
        return ""


def _unsaid(kind: Kind) -> frozenset[str]:
    """Return the fields of the wish whose default is 0: there it stands for what nobody said."""
    zeros = (path for path, field in walk(kind.desired) if field.form == "integer" and field.default == 0)
    return frozenset(".".join(path) for path in zeros)


def next_steps(kind: Kind, resource: Json) -> Iterator[tuple[str, str]]:
    """Yield commands that fit the resource as it is, each with what it is for."""
    account = f" --account {resource['account']}" if resource["account"] else ""
    target = f"{kind.short} {resource['name']}{account}"
    status, reason = state_of(resource)
    if resource["deleting_at"]:
        yield f"pileus wait {target} --for deleted", "wait until it is gone"
        return
    if kind.name == "compute.vm":
        yield from _next_of_vm(target, resource, reason)
    if kind.name == "fleet.rollout" and reason in ("Stopped", "RolledBack") and status != "true":
        again = resource["assigned"]["attempt"] + 1
        yield f"pileus patch {target} --attempt {again}", "try again what failed, after repair"
        return
    command, purpose = _NEXT.get((kind.name, reason), ("", ""))
    if command:
        yield f"pileus {command.format(target=target, name=resource['name'], account=account)}", purpose
    if status != "true" and not is_refused(resource):
        yield f"pileus wait {target}", "wait until it is ready"
        yield f"pileus events {target} --follow", "see what happens"


def _next_of_vm(target: str, vm: Json, reason: str) -> Iterator[tuple[str, str]]:
    power = (vm["observed"] or {}).get("power")
    if power == "running":
        yield f"pileus console {target}", "use its serial console"
    if power in ("running", "paused", "stopped"):
        yield f"pileus logs {target}", "see what it wrote to its console"
    if power == "paused" and vm["desired"]["power"] == "paused":
        yield f"pileus resume {target}", "let it run on"
    if power == "stopped" and (reason == "GuestShutdown" or vm["desired"]["power"] == "stopped"):
        yield f"pileus start {target}", "start it"


def _title(text: str) -> Iterator[str]:
    yield ""
    yield f"{_BOLD}{text}{_PLAIN}" if coloured() else text


def _table(headers: tuple[str, ...], rows: list[list[str]]) -> Iterator[str]:
    for line in plain(headers, rows).split("\n"):
        yield f"  {line}"


def _rows(value: Any, word: str, name: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every value in a section; empty ones are left out."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in _FOR_MACHINES:
                yield from _rows(part, f"{word}.{key}" if word else key, name)
    elif isinstance(value, list):
        if any(isinstance(part, dict | list) for part in value):
            for position, part in enumerate(value):
                yield from _rows(part, f"{word}[{position}]", name)
        elif value:
            yield word, "\n".join(name(str(part)) for part in value)
    elif value not in (None, ""):
        text = _scalar(word, value, name)
        if text:
            yield word, text


def _scalar(word: str, value: Any, name: Any) -> str:
    """Return a value for people; empty for one that says nothing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(name(str(value)))
    last = word.rpartition(".")[2]
    if last in _TIMES or last.endswith("_at"):
        ago_s = system_clock() - value
        when = f"{human_duration(ago_s)} ago" if ago_s >= 0 else f"in {human_duration(-ago_s)}"
        return f"{iso(value)} ({when})" if value else ""
    return _number(word, value) if isinstance(value, int) else f"{value:.15g}"


def _number(word: str, value: int) -> str:
    """Return a number for people; empty for a 0 that says nothing."""
    last = word.rpartition(".")[2]
    if value or not (last in _SIZES or "limit" in last.split("_")):
        return human_number(word, value)
    return "" if last in _SIZES else "no limit"
