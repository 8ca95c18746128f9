"""Requests to the server over one kept-alive TLS connection, and what refusals mean for the exit code."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from pileus.cli.contexts import Context
from pileus.cli.failure import BUG, NOT_FOUND, NOT_SIGNED_IN, REFUSED, UNREACHABLE, Failure, usage
from pileus.cli.progress import slow

Json = dict[str, Any]
Query = Sequence[tuple[str, str]]

TIMEOUT_S = 60.0
"""How long an answer may take: a server under load is slow, a lost one is refused at once."""

DOWNLOAD_TIMEOUT_S = 6 * 3600.0
"""A host first packs the whole disk, and says nothing meanwhile."""
DOWNLOAD_BYTES = 1 << 20
STREAM_TIMEOUT_S = 45.0
"""Three heartbeats of the server; a stream silent for longer is broken."""

PAGE = 1000


class Response:
    """An answer: status, headers and body."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Json:
        """Return the body as an object; empty for an empty body. Raises: Failure."""
        if not self.body:
            return {}
        try:
            return msgspec.json.decode(self.body, type=Json)
        except msgspec.MsgspecError:
            raise Failure("the server's answer is not JSON; is this a Pileus server?", exit_code=BUG) from None


class Client:
    """Calls one server. Not for use by several threads at once."""

    def __init__(self, context: Context, *, timeout_s: float = TIMEOUT_S) -> None:
        self.server = context.server.rstrip("/")
        self._key = context.key
        self._timeout_s = timeout_s
        self._where = urlsplit(self.server)
        if self._where.scheme != "https" or not self._where.hostname:
            raise usage(f"the server's address must be like https://cloud.example:7443, not {context.server!r}")
        self.tls = pinned(context.ca)
        self._connection: http.client.HTTPSConnection | None = None

    # plain requests

    def get(self, path: str, query: Query = ()) -> Json:
        """Return the object at ``path``. Raises: Failure."""
        return self.request("GET", path, query).json()

    def send(self, method: str, path: str, query: Query, body: Json) -> Json:
        """Send an object and return the answer's. A POST carries a key that makes sending it twice harmless."""
        headers = {"Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = os.urandom(16).hex()
        return self.request(method, path, query, msgspec.json.encode(body), headers).json()

    def delete(self, path: str, query: Query) -> Json:
        """Ask for a deletion and return the object as it is now."""
        return self.request("DELETE", path, query).json()

    def pages(self, path: str, query: Query, limit: int = 0) -> Iterator[Json]:
        """Yield pages until the list ends or ``limit`` items were given; 0: all."""
        after, left = "", limit
        while True:
            size = min(PAGE, left) if limit else PAGE
            page = self.get(path, [*query, ("limit", str(size)), ("after", after)])
            yield page
            left -= len(page["items"])
            after = page.get("next") or ""
            if not after or (limit and left <= 0):
                return

    def request(
        self, method: str, path: str, query: Query = (), body: bytes | None = None, headers: Json | None = None
    ) -> Response:
        """Return the answer, which is not a refusal. Raises: Failure."""
        with slow(f"waiting for {self.server}"):
            reused = self._connection is not None
            try:
                response = self._exchange(method, path, query, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept-alive connection may have been closed meanwhile; none of these calls harms when made twice.
                if not reused or isinstance(error, TimeoutError):
                    raise self._unreachable(error) from None
                response = self._again(method, path, query, body, headers or {})
        if response.status >= 400:
            raise refusal(response.status, response.body)
        return response

    def _again(self, method: str, path: str, query: Query, body: bytes | None, headers: Json) -> Response:
        try:
            return self._exchange(method, path, query, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None

    def _exchange(self, method: str, path: str, query: Query, body: bytes | None, headers: Json) -> Response:
        if self._connection is None:
            self._connection = self._connect(self._timeout_s)
        self._connection.request(method, self.target(path, query), body=body, headers=self._headers(headers))
        answer = self._connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())

    # streams

    def upload(self, path: str, query: Query, chunks: Iterable[bytes], size: int | None) -> Response:
        """Send ``chunks`` as the body; ``size`` in bytes, None when not known. Raises: Failure."""
        headers = self._headers({"Content-Type": "application/octet-stream"})
        if size is not None:
            headers["Content-Length"] = str(size)
        connection = self._connect(self._timeout_s)
        try:
            # A server that refuses answers before it read everything, and hangs up: its answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    "PUT", self.target(path, query), body=chunks, headers=headers, encode_chunked=size is None
                )
            answer = connection.getresponse()
            response = Response(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        if response.status >= 400:
            raise refusal(response.status, response.body)
        return response

    def append(self, path: str, query: Query, parts: Sequence[bytes], headers: Json) -> Response:
        """Send a piece of an upload. Raises: Failure."""
        said = {"Content-Type": "application/octet-stream", "Content-Length": str(sum(map(len, parts))), **headers}
        if self._connection is None:
            self._connection = self._connect(self._timeout_s)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.request("PATCH", self.target(path, query), body=parts, headers=self._headers(said))
            answer = self._connection.getresponse()
            response = Response(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None
        if response.status >= 400:
            self.close()  # what it did not read of the piece would be taken for the next request
            raise refusal(response.status, response.body)
        return response

    def download(self, path: str, query: Query) -> Iterator[bytes]:
        """Yield what is at ``path``, however long its maker takes to begin. Raises: Failure, also when it is cut off."""
        connection = self._connect(DOWNLOAD_TIMEOUT_S)
        try:
            connection.request("GET", self.target(path, query), headers=self._headers({"Accept": "*/*"}))
            answer = connection.getresponse()
            if answer.status >= 400:
                raise refusal(answer.status, answer.read())
            while chunk := answer.read(DOWNLOAD_BYTES):
                yield chunk
        except http.client.IncompleteRead:
            message = "the download was cut off"
            raise Failure(message, exit_code=UNREACHABLE, hint="try again; the host's log may say why") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def stream(self, path: str, query: Query) -> Iterator[tuple[str, str, str]]:
        """Yield (event, id, text) of a server-sent stream until it ends. Raises: Failure.

        Source: HTML Living Standard 9.2.6, interpretation of an event stream; heartbeats are comments.
        """
        connection = self._connect(STREAM_TIMEOUT_S)
        try:
            connection.request("GET", self.target(path, query), headers=self._headers({"Accept": "text/event-stream"}))
            answer = connection.getresponse()
            if answer.status >= 400:
                raise refusal(answer.status, answer.read())
            yield from parse_events(answer)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def close(self) -> None:
        """Close the kept-alive connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # parts

    @property
    def authority(self) -> str:
        """Host and port, for WebSockets."""
        return self._where.netloc

    @property
    def authorization(self) -> str:
        """The value of the header Authorization."""
        return f"Bearer {self._key}"

    def target(self, path: str, query: Query) -> str:
        """Return path and query as they stand in the request line."""
        given = [(name, value) for name, value in query if value != ""]
        return f"{self._where.path}{path}{'?' + urlencode(given) if given else ''}"

    def _headers(self, more: Json) -> Json:
        known = {"Authorization": self.authorization} if self._key else {}
        return {"Accept": "application/json", **known, **more}

    def _connect(self, timeout_s: float) -> http.client.HTTPSConnection:
        host = self._where.hostname or ""
        return http.client.HTTPSConnection(host, self._where.port or 443, timeout=timeout_s, context=self.tls)

    def _unreachable(self, error: Exception) -> Failure:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failure(
                f"{self.server} is not the server of this context: {error.verify_message}",
                exit_code=UNREACHABLE,
                hint="sign in again with the CA of that cloud: `pileus login --server URL --ca FILE --key -`",
            )
        if isinstance(error, TimeoutError):
            return Failure(f"{self.server} does not answer in time", exit_code=UNREACHABLE, hint="try again later")
        return Failure(
            f"no server answers at {self.server}; start one with `pileus up` or choose another context",
            exit_code=UNREACHABLE,
        )


def pinned(ca: str) -> ssl.SSLContext:
    """Return TLS settings that trust this CA (PEM) and nothing else. Raises: Failure when it is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError):
        raise usage("the context's CA is not a PEM certificate", "sign in again with `pileus login`") from None
    return context


def refusal(status: int, body: bytes) -> Failure:
    """Return what an answer of ``status`` >= 400 means. Source: RFC 9457 for the body."""
    try:
        problem = msgspec.json.decode(body, type=Json)
    except msgspec.MsgspecError:
        problem = {}
    message = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
    code = str(problem.get("code", ""))
    request = str(problem.get("request_id", ""))
    if status == 401:
        return Failure(message, exit_code=NOT_SIGNED_IN, code=code, hint="sign in with `pileus login`")
    if status == 404:
        return Failure(message, exit_code=NOT_FOUND, code=code)
    if status in (502, 503, 504):
        return Failure(message, exit_code=UNREACHABLE, code=code, hint="the server cannot do it now; try again")
    if status >= 500:
        hint = f"the server's log has more under request {request}" if request else "the server's log has more"
        return Failure(message, exit_code=BUG, code=code, hint=hint)
    return Failure(message, exit_code=REFUSED, code=code)


def segment(text: str) -> str:
    """Return ``text`` as one path segment."""
    return quote(text, safe="")


def parse_events(lines: Iterable[bytes]) -> Iterator[tuple[str, str, str]]:
    """Yield (event, id, text) from the lines of an event stream."""
    event, ident, parts = "message", "", list[str]()
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if parts:
                yield event, ident, "\n".join(parts)
            event, parts = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "id":
            ident = value
        elif name == "data":
            parts.append(value)
