"""The command ``pileus``: finds and loads the one verb that is meant, and turns failures into lines and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import TracebackType

import click

from pileus import __version__
from pileus.cli.failure import BROKEN_PIPE, BUG, EXIT_CODES, INTERRUPTED, OK, REFUSED, USAGE, Failure, suggestion
from pileus.kernel.errors import PileusError, Rejected

COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "See": {
        "get": ("get", "command", "List or show resources."),
        "describe": ("describe", "command", "Everything about one resource, and why it is as it is."),
        "events": ("events", "command", "What happened, to one resource or to all."),
        "logs": ("logs", "command", "Print what a VM wrote to its console."),
        "usage": ("usage", "command", "What was used: CPU, memory and disk by the hour, traffic by the GB."),
        "history": ("history", "command", "Keep a monitor's history in a file of yours."),
        "simulate": ("simulate", "command", "Say what policies would have done over the past."),
        "explain": ("explain", "command", "What a kind or field means: types, units, limits, reasons."),
        "wait": ("wait", "command", "Wait until resources are ready, gone, or otherwise as said."),
    },
    "Change": {
        "create": ("create", "command", "Make a resource from flags."),
        "patch": ("patch", "command", "Change some fields of a resource."),
        "edit": ("edit", "command", "Change a resource in your editor."),
        "apply": ("apply", "command", "Make or change what files of YAML or JSON say."),
        "delete": ("delete", "command", "Delete resources."),
    },
    "Use VMs": {
        "start": ("power", "start", "Start VMs."),
        "stop": ("power", "stop", "Shut VMs down."),
        "reboot": ("power", "reboot", "Boot VMs again."),
        "pause": ("power", "pause", "Stop the virtual CPUs of VMs."),
        "resume": ("power", "resume", "Let paused VMs run on."),
        "attach": ("plug", "attach", "Give a VM a further NIC or disk."),
        "detach": ("plug", "detach", "Take a NIC or a disk from a VM."),
        "ssh": ("ssh", "command", "Log in to a VM, or run a command in it."),
        "forward": ("forward", "command", "Lead ports of this machine to a VM's."),
        "mirror": ("mirror", "command", "Look at the packets of VMs: live, as pcapng, or who talks to whom."),
        "console": ("console", "command", "Use a VM's serial console; ctrl-] leaves it."),
    },
    "This machine": {
        "up": ("up", "command", "Start a cloud on this machine."),
        "down": ("down", "command", "Stop it."),
        "status": ("status", "command", "Say how it is."),
        "doctor": ("doctor", "command", "Check this machine and say what to install."),
        "server": ("server", "command", "Run a server."),
        "agent": ("agent", "command", "Run a host's agent."),
        "lab": ("lab", "command", "Run a data centre in a box."),
        "image": ("image", "command", "Build images."),
        "ovf": ("ovf", "command", "Look at and check OVF packages."),
        "join-token": ("join_token", "command", "Make a one-time token with which a host's agent joins."),
    },
    "You": {
        "login": ("login", "command", "Sign in to a cloud and make it the current context."),
        "whoami": ("whoami", "command", "Say who you are and what you may do."),
        "context": ("context", "command", "List, choose or show the clouds that you use."),
        "completion": ("completion", "command", "Print the completion script of your shell."),
        "version": ("version", "command", "Print the versions of this command and of the server."),
    },
}
"""Verbs by group: module in pileus.cli.commands, its attribute, summary. Kept here so that help imports nothing."""

_FLAT = {word: place for words in COMMANDS.values() for word, place in words.items()}

_OTHERS_SAY = {"ls": "get", "list": "get", "show": "describe"}
"""Verbs of other commands, with ours."""

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES) + "."


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class Verbs(click.Group):
    """The verbs, each imported when it is used."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb. Raises: ReaderGone, which click does not turn into exit code 1 as it does a broken pipe."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs."""
        return list(_FLAT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command; None when this program has none of that name."""
        place = _FLAT.get(cmd_name)
        if place is None:
            return None
        path = f"pileus.cli.commands.{place[0]}"
        try:
            command = getattr(importlib.import_module(path), place[1])
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
            return None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb. Raises: UsageError with the closest ones."""
        word = args[0]
        if not word.startswith("-") and self.get_command(ctx, word) is None and not ctx.resilient_parsing:
            said = _OTHERS_SAY.get(word.lower())
            close = f"; did you mean {said}?" if said else suggestion(word, list(_FLAT))
            close = close or "; `pileus --help` lists the commands"
            raise click.UsageError(f'there is no command "{word}"{close}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by group, without importing them."""
        for title, words in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(word, place[2]) for word, place in words.items()])


@click.group(
    cls=Verbs,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--context", "context_name", metavar="NAME", default="", help="The cloud to use, see `context list`.")
@click.version_option(__version__, prog_name="pileus", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, context_name: str) -> None:
    """Pileus turns Linux machines into a multi-tenant cloud.

    Most verbs work on every kind: `pileus get vm`, `pileus create network --help`, `pileus explain vm.nics`.
    """
    from pileus.cli.session import Session

    session = ctx.obj = Session(context_name or os.environ.get("PILEUS_CONTEXT", ""))
    ctx.call_on_close(session.close)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is one line on standard error."""
    sys.excepthook = _say_bug
    try:
        code = cli.main(None if arguments is None else list(arguments), prog_name="pileus", standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error)
    except Failure as failure:
        return _fail(failure.message, failure.hint, failure.exit_code)
    except PileusError as error:
        # From a command that does its work here, such as `up`: no server was asked.
        return _fail(error.message, "", REFUSED if isinstance(error, Rejected) else BUG)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except ReaderGone:
        # Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code if isinstance(code, int) else OK


def _refuse(error: click.ClickException) -> int:
    """Say what is wrong with the command line."""
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        sys.stderr.write(f"{message}\n")
        return USAGE
    if isinstance(error, click.NoSuchOption):
        message = (
            f"there is no flag {error.option_name}{suggestion(error.option_name, list(error.possibilities or ()))}"
        )
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see `{context.command_path} --help`" if context is not None else ""
    return _fail((message[:1].lower() + message[1:]).removesuffix("."), hint, USAGE)


def _fail(message: str, hint: str, exit_code: int) -> int:
    from pileus.cli.progress import clean

    sys.stderr.write(f"error: {clean(message)}\n")
    if hint:
        sys.stderr.write(f"hint: {clean(hint)}\n")
    return exit_code


def _say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say an unexpected error on one line; with PILEUS_DEBUG set, with the traceback."""
    if os.environ.get("PILEUS_DEBUG"):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"error: a bug in pileus: {kind.__name__}: {error}\n")
    sys.stderr.write("hint: run it again with PILEUS_DEBUG=1 and report what it prints\n")


if __name__ == "__main__":
    sys.exit(main())
