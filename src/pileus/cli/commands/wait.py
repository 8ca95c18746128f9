"""``pileus wait``: returns when resources are as said."""

from __future__ import annotations

import sys
from typing import Any

import click

from pileus.cli.client import Json
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.session import Session, account_option, kind_argument, names_argument, noun
from pileus.cli.waiting import DEFAULT_TIMEOUT_S, Goal, Timeout, goal_of, wait_for
from pileus.kernel.kind import Kind


class GoalWord(click.ParamType[Goal]):
    """Parses the value of --for."""

    name = "goal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Goal:
        """Return the goal. Raises: UsageError."""
        try:
            return value if isinstance(value, Goal) else goal_of(str(value))
        except ValueError as error:
            raise click.UsageError(f"--for takes {error}, not {value!r}", ctx) from None


@click.command("wait", no_args_is_help=True)
@kind_argument
@names_argument(required=True)
@account_option
@click.option(
    "--for", "goal", type=GoalWord(), default="ready", show_default=True, metavar="GOAL",
    help="ready, deleted (or gone), condition=TYPE[=STATUS], jsonpath={.observed.power}=running",
)  # fmt: skip
@click.option(
    "--timeout", type=Timeout(), default=DEFAULT_TIMEOUT_S, show_default="5m", metavar="TIME",
    help="How long to wait: 90, 90s, 5m, 1h.",
)  # fmt: skip
@click.pass_obj
def command(session: Session, kind: Kind, names: tuple[str, ...], account: str, goal: Goal, timeout: float) -> None:
    """Wait until all the named resources are as said; exit code 5 when that takes too long."""
    if "-" in names:
        raise usage("a name is missing")
    found: list[Json] = []
    for name in names:
        try:
            found.append(session.get(kind, name, account))
        except Failure as failure:
            if failure.exit_code != NOT_FOUND or not goal.gone:
                raise
            sys.stdout.write(f"{kind.short} {name} is gone\n")
    if found:
        for resource in wait_for(session, kind, found, goal, timeout):
            sys.stdout.write(f"{noun(kind, resource)} is {goal.text}\n")
