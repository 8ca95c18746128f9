"""``pileus edit KIND NAME``: the wish as YAML in an editor, sent back with the revision it was read at."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.documents import parse_one
from pileus.cli.failure import Failure, usage
from pileus.cli.output import to_yaml
from pileus.cli.session import Session, account_option, kind_argument, name_argument, noun, root, wait_options
from pileus.cli.waiting import READY, wait_for
from pileus.kernel.kind import Kind


@click.command("edit", no_args_is_help=True)
@kind_argument
@name_argument
@account_option
@wait_options
@click.pass_obj
def command(session: Session, /, kind: Kind, name: str, account: str, **options: Any) -> None:
    """Change labels and wish of a resource in $VISUAL or $EDITOR.

    If someone else changed it meanwhile nothing is overwritten: the server refuses, and your text is kept.
    """
    before = session.get(kind, name, account)
    text = _as_text(kind, before)
    draft = _draft(f"pileus-{kind.short}-{before['name']}-")
    draft.write_text(text, encoding="utf-8")
    _run_editor(draft)
    try:
        after = _send(session, kind, before, draft, text)
    except Failure as failure:
        failure.hint = f"your text is kept in {draft}" + (f"; {failure.hint}" if failure.hint else "")
        raise
    draft.unlink(missing_ok=True)
    if after is None:
        sys.stdout.write(f"{noun(kind, before)} unchanged\n")
        return
    if options["wait"]:
        wait_for(session, kind, [after], READY, options["timeout"])
    sys.stdout.write(f"{noun(kind, before)} changed\n")


def _as_text(kind: Kind, resource: Json) -> str:
    fixed = ", ".join(sorted(kind.immutable))
    note = f"# {noun(kind, resource)}; `pileus explain {kind.short}` says what the fields mean.\n"
    note += f"# These cannot change: name{', ' if fixed else ''}{fixed}.\n"
    return note + to_yaml({name: resource[name] for name in ("name", "labels", "desired")})


def _draft(prefix: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=prefix, suffix=".yaml")
    os.close(handle)
    return Path(path)


def _run_editor(draft: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        ended = subprocess.run([*shlex.split(editor), str(draft)], check=False)
    except OSError as error:
        raise usage(f"cannot run the editor {editor!r}: {error.strerror}", "set EDITOR to one that is there") from None
    if ended.returncode != 0:
        raise usage(f"the editor ended with {ended.returncode}; nothing was changed", f"your text is kept in {draft}")


def _send(session: Session, kind: Kind, before: Json, draft: Path, text: str) -> Json | None:
    """Send what was edited; None when nothing was."""
    edited = draft.read_text(encoding="utf-8")
    if edited == text:
        return None
    content = parse_one(edited, str(draft))
    if not isinstance(content, dict) or not set(content) <= {"name", "labels", "desired"}:
        raise usage("the text must have name, labels and desired, and nothing else")
    if content.get("name") != before["name"]:
        raise usage("a name cannot change; make another resource with the new name")
    wish: Json = {"labels": content.get("labels") or {}, "desired": content.get("desired") or {}}
    if wish == {"labels": before["labels"], "desired": before["desired"]}:
        return None
    query = [("account", before["account"])]
    path = f"{root(kind)}/{segment(before['id'])}"
    return session.client.send("PUT", path, query, {**wish, "revision": before["revision"]})
