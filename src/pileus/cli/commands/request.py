"""``pileus create request --node NODE --payload TEXT --wait``: asks a node something, and prints its answer."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from pileus.cli.client import Json, segment
from pileus.cli.commands.create import finish, post
from pileus.cli.commands.logs import shown
from pileus.cli.failure import Failure, usage
from pileus.cli.flags import check, desired_of, given_flags
from pileus.cli.progress import Bar
from pileus.cli.session import Session, noun, root
from pileus.cli.waiting import READY, wait_for
from pileus.fleet.request.types import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX
from pileus.kernel.kind import Kind

CHUNK_BYTES = 1 << 18


def payload_option(function: Any) -> Any:
    """Add --payload-file."""
    text = "The payload, of any bytes up to 16 MiB; - for standard input."
    return click.option("--payload-file", metavar="FILE", default="", help=text)(function)


def create_request(session: Session, kind: Kind, **options: Any) -> None:
    """Send the request, its payload too when it is long, and print the answer when it was waited for."""
    desired = desired_of(given_flags())
    body = _read(options["payload_file"], desired)
    check(kind, desired)
    made = post(session, kind, desired, options)
    if body is not None and not options["dry_run"]:
        made = _upload(session, kind, made, body)
    if options["dry_run"] or options["output"].form or not options["wait"]:
        finish(session, kind, made, options)
        return
    settled = wait_for(session, kind, [made], READY, options["timeout"])[0]
    sys.stderr.write(f"{noun(kind, settled)} is applied\n")
    path = f"{root(kind)}/{segment(settled['id'])}/answer"
    answer = session.client.request("GET", path, [("account", settled["account"])]).body
    sys.stdout.buffer.write(shown(answer) if sys.stdout.isatty() else answer)
    sys.stdout.buffer.flush()


def _read(name: str, desired: Json) -> bytes | None:
    """Put a short text into the wish; return anything else, for an upload. Raises: Failure."""
    if not name:
        return None
    if "payload" in desired or "upload" in desired:
        raise usage("--payload-file says the payload; leave --payload and --upload out")
    try:
        with sys.stdin.buffer if name == "-" else Path(name).expanduser().open("rb") as file:
            body = file.read(PAYLOAD_BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"cannot read {name}: {error.strerror}") from None
    if len(body) > PAYLOAD_BYTES_MAX:
        raise usage(f"{name} is longer than the {PAYLOAD_BYTES_MAX} bytes that a payload may have")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text and len(msgspec.json.encode(text)) - 2 <= INLINE_BYTES_MAX:
        desired["payload"] = text
        return None
    desired["upload"] = "yes"
    return body


def _upload(session: Session, kind: Kind, request: Json, body: bytes) -> Json:
    bar = Bar("uploading the payload", len(body))
    stream = io.BytesIO(body)

    def chunks() -> Any:
        while chunk := stream.read(CHUNK_BYTES):
            bar.add(len(chunk))
            yield chunk

    try:
        path = f"{root(kind)}/{segment(request['id'])}/payload"
        return session.client.upload(path, [("account", request["account"])], chunks(), len(body)).json()
    except Failure as failure:
        failure.hint = (
            f"the request is there without its payload: `pileus delete request {request['name']} "
            f"--account {request['account']}`, and repeat"
        )
        raise
    finally:
        bar.close()
