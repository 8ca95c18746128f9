"""Waiting until resources are as wished: follows the server's watch stream and says what is still missing."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from pileus.cli.client import Client, Json
from pileus.cli.failure import NOT_FOUND, REFUSED, TIMED_OUT, UNREACHABLE, Failure
from pileus.cli.paths import find, parse
from pileus.cli.progress import Progress
from pileus.cli.session import Session, noun, root
from pileus.cli.table import state_of, text_of
from pileus.cli.units import parse_duration
from pileus.kernel.kind import Kind

DEFAULT_TIMEOUT_S = 300.0
"""A slow machine without KVM boots a guest in well under a minute; five leave room for many at once."""

TICK_S = 0.15
RETRY_S = 1.0


class Timeout(click.ParamType[float]):
    """Seconds as a number, or a number with s, m or h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds. Raises: UsageError."""
        if isinstance(value, int | float):
            return float(value)
        seconds = parse_duration(str(value))
        if seconds is None:
            raise click.UsageError(f"--timeout takes seconds, or a time such as 90s, 5m or 1h, not {value!r}", ctx)
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is waited for. ``text`` completes "is not ..."; ``gone``: being gone is the goal."""

    text: str
    met: Callable[[Json], bool]
    gone: bool = False


def is_ready(resource: Json) -> bool:
    """Tell whether the condition Ready is true and nobody deletes the resource."""
    return state_of(resource)[0] == "true" and not resource["deleting_at"]


def is_refused(resource: Json) -> bool:
    """Tell whether the resource stays unready whatever is waited for.

    An upload that is no good, a request or an action that ended, a rollout that stopped at its gate or went back.
    """
    observed = resource["observed"] or {}
    if "phase" in observed:
        return state_of(resource)[1] in ("Stopped", "RolledBack", "Refused")
    return observed.get("state") in ("refused", "expired", "failed", "withdrawn", "unknown")


READY = Goal(text="ready", met=is_ready)
DELETED = Goal(text="gone", met=lambda resource: False, gone=True)


def goal_of(text: str) -> Goal:
    """Return the goal of ``--for``. Raises: ValueError."""
    if text in ("ready", "Ready"):
        return READY
    if text in ("deleted", "delete", "gone"):
        return DELETED
    if text.startswith("condition="):
        return _condition(text.removeprefix("condition="))
    if text.startswith(("jsonpath=", "{", ".")):
        return _path(text.removeprefix("jsonpath="))
    raise ValueError("ready, deleted, condition=TYPE[=STATUS] or jsonpath={.path}=VALUE")


def _condition(text: str) -> Goal:
    type_, _, status = text.partition("=")
    wanted = (status or "true").lower()

    def met(resource: Json) -> bool:
        return any(c["type"].lower() == type_.lower() and c["status"] == wanted for c in resource["conditions"])

    return Goal(text=f"{type_}={wanted}", met=met)


def _path(text: str) -> Goal:
    bare = text.replace("'", "").replace('"', "")
    path, equals, wanted = bare.removeprefix("{").partition("}=" if bare.startswith("{") else "=")
    if not equals:
        raise ValueError("jsonpath={.path}=VALUE")
    steps = parse(path)
    return Goal(
        text=f"{path}={wanted}",
        met=lambda resource: any(text_of(value) == wanted for value in find(resource, steps)),
    )


def wait_for(session: Session, kind: Kind, resources: Sequence[Json], goal: Goal, timeout_s: float) -> list[Json]:
    """Return the resources as they are when all meet the goal. Raises: Failure when that takes too long."""
    return _Wait(session, kind, resources, goal, timeout_s).run()


class _Wait:
    def __init__(self, session: Session, kind: Kind, resources: Sequence[Json], goal: Goal, timeout_s: float) -> None:
        self._client = session.client
        self._kind = kind
        self._goal = goal
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._latest = {resource["id"]: resource for resource in resources}
        self._pending = {resource["id"] for resource in resources if not goal.met(resource)}
        accounts = {resource["account"] for resource in resources}
        # One stream serves all of them: -A where they lie in several accounts.
        self._scope = [("all_accounts", "1")] if len(accounts) > 1 else [("account", *accounts)]

    def run(self) -> list[Json]:
        """Follow one stream after the other until nothing is pending."""
        try:
            with Progress() as progress:
                self._say(progress)
                while self._pending:
                    self._follow(progress)
        except KeyboardInterrupt:
            sys.stderr.write("stopped waiting; it goes on\n")
            raise click.Abort from None
        return list(self._latest.values())

    def _follow(self, progress: Progress) -> None:
        """Follow a stream until it ends, everything is met, or time is up."""
        heard: queue.SimpleQueue[tuple[str, str] | Failure] = queue.SimpleQueue()
        query = [*self._scope, ("watch", "1"), ("id", ",".join(sorted(self._pending)))]
        threading.Thread(target=_listen, args=(self._client, root(self._kind), query, heard), daemon=True).start()
        seen: set[str] = set()
        while self._pending:
            self._refuse_late()
            try:
                event = heard.get(timeout=TICK_S)
            except queue.Empty:
                progress.tick()
                continue
            if isinstance(event, Failure):
                self._bear(event, progress)
                return
            if event[0] == "closed":
                return
            self._note(*event, seen)
            self._say(progress)

    def _bear(self, failure: Failure, progress: Progress) -> None:
        """Try again later when the server went away: what is waited for goes on without it."""
        if failure.exit_code != UNREACHABLE:
            raise failure
        progress.say(f"{failure.message}; trying again")
        time.sleep(min(RETRY_S, max(0.0, self._until - time.monotonic())))
        self._refuse_late()

    def _note(self, event: str, text: str, seen: set[str]) -> None:
        if event == "put":
            resource = msgspec.json.decode(text, type=Json)
            id = resource["id"]
            seen.add(id)
            if id in self._pending:
                self._latest[id] = resource
                if self._goal.met(resource):
                    self._pending.discard(id)
                elif self._goal is READY and is_refused(resource):
                    raise self._refused(resource)
        elif event == "gone":
            self._note_gone(str(msgspec.json.decode(text, type=Json)["id"]))
        elif event == "synced":
            for id in sorted(self._pending - seen):
                self._note_gone(id)
        elif event == "reset":
            seen.clear()

    def _note_gone(self, id: str) -> None:
        if id not in self._pending:
            return
        if not self._goal.gone:
            raise Failure(f"{noun(self._kind, self._latest[id])} is gone", exit_code=NOT_FOUND)
        self._pending.discard(id)

    def _say(self, progress: Progress) -> None:
        if self._pending:
            more = f" (and {len(self._pending) - 1} more)" if len(self._pending) > 1 else ""
            progress.say(f"{self._first()}{more}")

    def _first(self) -> str:
        resource = self._latest[min(self._pending)]
        return f"{noun(self._kind, resource)}: {why(resource)}"

    def _refused(self, resource: Json) -> Failure:
        observed = resource["observed"]
        state = observed.get("phase") or observed["state"]
        return Failure(f"{noun(self._kind, resource)} is {state}: {why(resource)}", exit_code=REFUSED)

    def _refuse_late(self) -> None:
        if time.monotonic() < self._until:
            return
        resource = self._latest[min(self._pending)]
        account = f" --account {resource['account']}" if resource["account"] else ""
        raise Failure(
            f"{noun(self._kind, resource)} is not {self._goal.text} after {self._timeout_s:g} s: {why(resource)}",
            exit_code=TIMED_OUT,
            hint=f"it goes on; `pileus describe {self._kind.short} {resource['name']}{account}` says more",
        )


def why(resource: Json) -> str:
    """Return reason and message of the condition Ready on one line."""
    ready = next((one for one in resource["conditions"] if one["type"] == "Ready"), None)
    if ready is None:
        return "nothing is known yet"
    return f"{ready['reason']}: {ready['message']}" if ready["message"] else str(ready["reason"])


def _listen(
    client: Client,
    path: str,
    query: list[tuple[str, str]],
    heard: queue.SimpleQueue[tuple[str, str] | Failure],
) -> None:
    try:
        for event, _, text in client.stream(path, query):
            heard.put((event, text))
        heard.put(("closed", ""))
    except Failure as failure:
        heard.put(failure)
