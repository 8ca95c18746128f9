"""The contexts file: which servers there are, with which CA and key, and which of them is meant."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from pileus.cli.failure import NOT_SIGNED_IN, Failure, suggestion, usage


class Context(Struct, frozen=True, kw_only=True):
    """A server and how to talk to it. ``ca``: PEM of the one CA that is trusted; ``account``: default of --account."""

    server: str
    ca: str
    key: str
    account: str = ""


class Config(Struct, kw_only=True):
    """The file as a whole."""

    current: str = ""
    contexts: dict[str, Context] = {}


def path() -> Path:
    """Return where the file is: $PILEUS_CONFIG, else below the user's configuration folder."""
    chosen = os.environ.get("PILEUS_CONFIG")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pileus" / "config.json"


def load() -> Config:
    """Return the file's content, empty when there is none. Raises: Failure when it cannot be read."""
    file = path()
    try:
        text = file.read_bytes()
        mode = file.stat().st_mode
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise usage(f"cannot read {file}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        sys.stderr.write(f"warning: others may read the keys in {file}; run: chmod 600 {file}\n")
    try:
        return msgspec.json.decode(text, type=Config)
    except msgspec.MsgspecError as error:
        raise usage(f"{file} is not a contexts file: {error}", "move it away and sign in with `pileus login`") from None


def save(config: Config) -> None:
    """Write the file, readable by its owner only, in one step. Raises: Failure."""
    file = path()
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(config)) + b"\n")
        draft.replace(file)
    except OSError as error:
        raise usage(f"cannot write {file}: {error.strerror}") from None


def put(name: str, context: Context, *, current: bool = True) -> None:
    """Add or replace a context, and make it the current one unless told otherwise."""
    config = load()
    config.contexts[name] = context
    if current or not config.current:
        config.current = name
    save(config)


def choose(name: str) -> Context:
    """Return the named context; the current one for "". Raises: Failure when there is none."""
    config = load()
    wanted = name or config.current
    if wanted in config.contexts:
        return config.contexts[wanted]
    if name:
        close = suggestion(name, list(config.contexts))
        raise usage(f'there is no context "{name}"{close}', "`pileus context list` shows the contexts")
    raise Failure(
        "no cloud is chosen yet",
        exit_code=NOT_SIGNED_IN,
        hint="start one here with `pileus up`, or sign in with `pileus login --server URL --ca FILE --key -`",
    )
