"""The server as a whole: composes store, hub, loop and HTTP, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import importlib
import ipaddress
import os
import resource
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from msgspec import Struct

from pileus.kernel.admission import Admission
from pileus.kernel.clock import Clock, system_clock
from pileus.kernel.errors import Rejected
from pileus.kernel.hub import Hub
from pileus.kernel.loop import Controller, Loop
from pileus.kernel.store.engine import Engine
from pileus.kernel.store.postgres import PostgresEngine
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.surface import Surface
from pileus.registry import KINDS
from pileus.server import app, chores, tls
from pileus.server.auth import Auth, ensure_operator
from pileus.server.ca import Authority, open_authority, write_server_files
from pileus.server.images import ImageStore
from pileus.server.joining import Joining
from pileus.server.links import AgentLinks
from pileus.server.parts import Parts, Uploaded
from pileus.server.streams import Streams

log = structlog.get_logger()

BACKLOG = 2048
GRACE_S = 2
"""What is being answered when the server is asked to stop gets this long."""
WEBSOCKET_BYTES_MAX = 16 * 1024 * 1024
GC_THRESHOLD = (50_000, 20, 50)
"""Measured on lists of 500: 0.66 times the CPU of Python's default."""


class ServerSettings(Struct, frozen=True, kw_only=True):
    """Where a server keeps its state and where it listens."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 7443
    """0: any free one."""
    database: str = ""
    """postgresql://user:password@host:port/name; empty: the SQLite file ``pileus.db`` in ``data``."""
    tls_names: tuple[str, ...] = ()
    """Further names and addresses in the server's certificate."""
    name: str = ""
    """Of this server among those on one database; empty: the machine's name."""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What the kinds bring: one of each for the program, made in ``pileus.server.wiring``."""

    admissions: Mapping[str, Admission]
    controllers: Callable[[Store, ImageStore], Mapping[str, Controller]]
    agents: Callable[[Store, Hub], contextlib.AbstractAsyncContextManager[AgentLinks]]
    uploaded: Callable[[Store, ImageStore], Uploaded]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server that answers."""

    url: str
    port: int
    ca: str
    """PEM of the authority that clients pin."""
    operator_key: str | None
    """The first administrator's key, at the first start of a cluster only; it cannot be read again."""
    parts: Parts
    """What the routes work with, for whoever runs in the same process."""
    stop: Callable[[], None]
    """Ask the server to end, as SIGTERM does."""


async def serve(
    settings: ServerSettings,
    ready: Callable[[Started], None],
    wiring: Wiring | None = None,
    also: Sequence[socket.socket] = (),
) -> None:
    """Serve until SIGTERM, SIGINT or ``Started.stop``; ``ready`` is called once the port answers.

    ``also``: further listening sockets, such as those of other network namespaces; they are closed at the end.
    Raises: Rejected (in-use, port-in-use, bad-address) before anything is changed; Transient without a database.
    """
    if wiring is None:
        wiring = importlib.import_module("pileus.server.wiring").WIRING
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_sole_user(settings.data))
        listener = stack.enter_context(_listen(settings.host, settings.port))
        store = Store(_engine(settings), KINDS, system_clock, settings.name or socket.gethostname())
        await store.engine.open()
        stack.push_async_callback(store.engine.close)
        hub = await stack.enter_async_context(_hub(store))
        authority = await open_authority(store)
        operator_key = await ensure_operator(store)
        parts = await stack.enter_async_context(_parts(settings, store, hub, authority, wiring))
        await stack.enter_async_context(_loop(store, hub, wiring.controllers(store, parts.images)))
        port = listener.getsockname()[1]
        server = _Server(parts, _context(settings, authority))
        stack.enter_context(_signals(server.stop))
        await stack.enter_async_context(
            chores.running(
                store,
                lambda: _renew(server, settings, authority, store.clock),
                lambda: parts.images.forget_unfinished(store.clock()),
            )
        )
        started = Started(
            url=_url(settings.host, port),
            port=port,
            ca=authority.pem,
            operator_key=operator_key,
            parts=parts,
            stop=server.stop,
        )
        _tune()
        await server.run([listener, *also], lambda: ready(started))


class _Server(uvicorn.Server):
    """Uvicorn without its own signals, which ends open streams before it waits for them."""

    def __init__(self, parts: Parts, context: ssl.SSLContext) -> None:
        self.context = context
        self._streams: Streams = parts.streams
        self._ready: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app.build(parts),
                http=tls.Http,
                ws=tls.WebSocket,
                ws_max_size=WEBSOCKET_BYTES_MAX,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                # On by default, it would believe X-Forwarded-For of every local peer.
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=GRACE_S,
                ssl_context_factory=lambda config, default: context,
            )
        )

    async def run(self, listeners: list[socket.socket], ready: Callable[[], None]) -> None:  # type: ignore[override]
        """Serve on ``listeners`` until stopped."""
        self._ready = ready
        await self._serve(listeners)

    def stop(self) -> None:
        """Ask for the end; asked twice: the same."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close()
        await super().shutdown(sockets)


def _engine(settings: ServerSettings) -> Engine:
    if settings.database:
        if not settings.database.startswith(("postgresql://", "postgres://")):
            raise Rejected("--database takes postgresql://user:password@host:port/name, or nothing for SQLite")
        return PostgresEngine(settings.database)
    path = settings.data / "pileus.db"
    path.touch(mode=0o600)
    return SqliteEngine(path)


@contextlib.asynccontextmanager
async def _hub(store: Store) -> AsyncIterator[Hub]:
    hub = Hub(store)
    await hub.open()
    if isinstance(store.engine, PostgresEngine):
        store.engine.on_notify = hub.notify
    try:
        yield hub
    finally:
        await hub.close()


@contextlib.asynccontextmanager
async def _parts(
    settings: ServerSettings, store: Store, hub: Hub, authority: Authority, wiring: Wiring
) -> AsyncIterator[Parts]:
    images = ImageStore(settings.data / "images", store.server)
    images.open()
    auth = Auth(store, hub)
    await auth.open()
    try:
        async with wiring.agents(store, hub) as agents:
            yield Parts(
                store=store,
                hub=hub,
                registry=KINDS,
                surface=Surface(store, hub, KINDS, wiring.admissions),
                auth=auth,
                joining=Joining(store, authority),
                images=images,
                agents=agents,
                uploaded=wiring.uploaded(store, images),
            )
    finally:
        await auth.close()


@contextlib.asynccontextmanager
async def _loop(store: Store, hub: Hub, controllers: Mapping[str, Controller]) -> AsyncIterator[None]:
    loop = Loop(store, hub, controllers)
    await loop.open()
    try:
        yield
    finally:
        await loop.close()


@contextlib.contextmanager
def _sole_user(data: Path) -> Iterator[None]:
    """Hold the data folder for the block. Raises: Rejected when another server has it."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Rejected(f"the data folder {data} cannot be used: {error.strerror}; choose another with --data") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Rejected(
            f"another pileus server uses {data}; stop it with `pileus down`, or choose another folder with --data",
            code="in-use",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises: Rejected."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use by another program; choose another with --port"
            raise Rejected(message, code="port-in-use") from None
        if number == errno.EACCES:
            raise Rejected(f"port {port} needs root; choose one above 1023 with --port", code="bad-address") from None
        raise Rejected(
            f"cannot listen on {host} port {port}: {error}; choose others with --host and --port", code="bad-address"
        ) from None


def _names(settings: ServerSettings) -> list[str]:
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.tls_names]
    try:
        everywhere = ipaddress.ip_address(settings.host).is_unspecified
    except ValueError:
        everywhere = False
    return names if everywhere else [*names, settings.host]


def _context(settings: ServerSettings, authority: Authority) -> ssl.SSLContext:
    folder = settings.data / "tls"
    write_server_files(authority, folder, _names(settings), system_clock())
    return tls.server_context(folder)


def _renew(server: _Server, settings: ServerSettings, authority: Authority, clock: Clock) -> None:
    """Replace the server's certificate in time; connections that are open keep theirs."""
    folder = settings.data / "tls"
    if write_server_files(authority, folder, _names(settings), clock()):
        tls.load_certificate(server.context, folder)
        log.info("the server's certificate was renewed")


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"https://[{shown}]:{port}" if ":" in shown else f"https://{shown}:{port}"


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """End gracefully on SIGTERM and SIGINT for the block."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    with contextlib.ExitStack() as stack:
        for number in numbers:
            # Elsewhere than in the main thread signals belong to somebody else, who calls ``stop``.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, stop)
                stack.callback(loop.remove_signal_handler, number)
        yield


def _tune() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
