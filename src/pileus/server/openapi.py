"""The OpenAPI 3.1 document, derived from the kinds' types: nothing in it is written twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

import pileus
from pileus.kernel.access import Rule
from pileus.kernel.admission import Decision
from pileus.kernel.condition import Condition
from pileus.kernel.kind import NAME_PATTERN, Empty, Kind, Registry
from pileus.server.joining import Joined, JoinRequest, JoinToken, RenewRequest
from pileus.server.resources import LIMITS

Json = dict[str, Any]

REF = "#/components/schemas/{name}"
ACCOUNT = ("account", "Name or id of the account; tenants leave it out.")
ALL_ACCOUNTS = ("all_accounts", "1: every account (operators).")
FILTERS = (
    ACCOUNT,
    ALL_ACCOUNTS,
    ("host", "Name or id of a host."),
    ("zone", "Name or id of a zone."),
    ("vdc", "Name or id of a vdc."),
    ("manager", "Name or id of a fleet manager."),
    ("owner", "Id of the resource that made it."),
    ("name", "Exact name."),
    ("ready", "true, false or unknown."),
    ("label", "key=value; may be repeated."),
    ("id", "Ids, separated by commas."),
    ("owned", "1: also what another resource made, such as a router's VM; lists of other kinds show it anyway."),
    ("limit", "Items per page, 1 to 1000; 500 when left out."),
    ("after", "The cursor `next` of the page before."),
    ("watch", "1: answer with text/event-stream (put, gone, synced, reset)."),
    ("since", "With watch: only what changed after this revision."),
)


def openapi(registry: Registry) -> Json:
    """Return the document for these kinds."""
    kinds = list(registry)
    sections = [section for kind in kinds for section in (kind.desired, kind.assigned, kind.observed)]
    shared = [Condition, Decision, Rule, JoinToken, JoinRequest, RenewRequest, Joined]
    unique = list(dict.fromkeys(section for section in [*sections, *shared] if section is not Empty))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REF)
    by_type = dict(zip(unique, schemas, strict=True))
    paths: Json = {}
    for kind in kinds:
        components[kind.name] = _resource(kind, by_type, by_type[Condition])
        components[f"{kind.name}.list"] = _page(kind)
        paths |= _paths(kind, by_type)
    components["problem"] = _problem()
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Pileus",
            "version": pileus.__version__,
            "description": "Every kind has the same verbs. Errors are application/problem+json with a stable code.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": kind.name, "description": kind.summary} for kind in kinds],
        "paths": paths | _own_paths(by_type),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key that starts with pil_."},
                "agent": {"type": "mutualTLS", "description": "A host's client certificate, got by joining."},
            },
        },
    }


def _paths(kind: Kind, by_type: dict[Any, Json]) -> Json:
    one, page = _named(kind.name), _named(f"{kind.name}.list")
    collection: Json = {"get": _operation(kind, "list", page, FILTERS)}
    item: Json = {"parameters": [_ident(kind)], "get": _operation(kind, "get", one, (ACCOUNT,))}
    if kind.created_by == "user":
        body = _body(kind, by_type)
        dry_run = ("dry_run", "1: return what would be decided, and do nothing.")
        post = _operation(kind, "create", one, (ACCOUNT, dry_run), "201", body)
        post["parameters"].append(_header("Idempotency-Key", "Repeats of the request get the first one's answer."))
        collection["post"] = post
        item["put"] = _operation(kind, "replace", one, (ACCOUNT,), "200", body)
        item["patch"] = _operation(kind, "patch", one, (ACCOUNT,), "200", {"type": "object"})
        item["delete"] = _operation(kind, "delete", one, (ACCOUNT,), "202")
    path = f"/v1/{kind.name}/{{ident}}"
    paths: Json = {f"/v1/{kind.name}": collection, path: item}
    below = ["events", "counters", *(["usage"] if kind.name in LIMITS else [])]
    for word in below:
        operation = _operation(kind, word, {"type": "object"}, (ACCOUNT,))
        paths[f"{path}/{word}"] = {"parameters": [_ident(kind)], "get": operation}
    return paths


def _own_paths(by_type: dict[Any, Json]) -> Json:
    """Return the paths that are not the same for every kind."""
    part = {"name": "part", "in": "path", "required": True, "schema": {"enum": ["disk", "kernel", "initrd"]}}
    binary: Json = {"application/octet-stream": {}}
    text = {"200": {"description": "The text.", "content": {"text/plain": {}}}, "default": _error()}
    socket = {"101": {"description": "A WebSocket of binary messages."}, "default": _error()}
    agent: Json = {"security": [{"agent": []}]}
    anyone: Json = {"security": []}
    return {
        "/v1": {"get": _plain("version", {"type": "object"}) | anyone},
        "/v1/whoami": {"get": _plain("whoami", {"type": "object"})},
        "/v1/event": {"get": _plain("events", {"type": "object"})},
        "/v1/audit": {"get": _plain("audit", {"type": "object"})},
        "/v1/usage": _usage_path(),
        **_vm_paths(text, socket),
        **_mirror_paths(socket),
        **_disk_paths(part, binary),
        "/v1/fleet.node/{ident}/document": {
            "parameters": [_ident_of("node")],
            "get": _plain("document", {"type": "object"}),
        },
        **_request_paths(binary),
        **_history_paths(),
        "/v1/infra.host/{ident}/join-token": {
            "parameters": [_ident_of("host")],
            "post": _plain("join-token", by_type[JoinToken], "201"),
        },
        "/agent/v1/ca": {"get": {"operationId": "ca", "responses": text} | anyone},
        "/agent/v1/join": {"post": _plain("join", by_type[Joined]) | _json_body(by_type[JoinRequest]) | anyone},
        "/agent/v1/renew": {"post": _plain("renew", by_type[Joined]) | _json_body(by_type[RenewRequest]) | agent},
        "/agent/v1/stream": {"get": {"operationId": "stream", "responses": socket} | agent},
        "/agent/v1/image/{image}/{part}": {
            "parameters": [part, {"name": "image", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {
                "operationId": "image",
                "responses": {"200": {"description": "The file.", "content": binary}, "default": _error()},
            }
            | agent,
        },
        "/agent/v1/content/{ident}/{part}": {
            "parameters": [_ident_of("request"), _word("part", "payload")],
            "get": {"operationId": "content", "responses": _file(binary)} | agent,
        },
        "/schema": {"get": _plain("schema", {"type": "object"}) | anyone},
        "/healthz": {"get": _plain("health", {"type": "object"}) | anyone},
    }


def _request_paths(binary: Json) -> Json:
    """Return what a request to a node has besides: its payload and the node's answer."""
    upload = _plain("upload-payload", _named("fleet.request")) | {"requestBody": {"required": True, "content": binary}}
    upload["parameters"] = [_header("X-Content-SHA256", "What the payload's SHA-256 must be, in hex.")]
    return {
        "/v1/fleet.request/{ident}/payload": {
            "parameters": [_ident_of("request")],
            "get": {"operationId": "payload", "responses": _file(binary)},
            "put": upload,
        },
        "/v1/fleet.request/{ident}/answer": {
            "parameters": [_ident_of("request")],
            "get": {"operationId": "answer", "responses": _file(binary)},
        },
    }


def _history_paths() -> Json:
    """Return what a history of form sqlite has besides: its entries, until they are kept elsewhere."""
    whole, text = {"type": "integer"}, {"type": "string"}
    entry = {"seq": whole, "at": {**text, "format": "date-time"}, "kind": text, "body": {"type": "object"}}
    page: Json = {
        "type": "object",
        "properties": {
            "stream": text,
            "at": {**text, "format": "date-time", "description": "When it was so."},
            "items": {"type": "array", "items": {"type": "object", "properties": entry}},
            "taken": {**whole, "description": "The last entry that somebody has said to keep."},
            "dropped": {**whole, "description": "Entries that went because more than waiting_max waited."},
        },
    }
    read, forget = _plain("entries", page), _plain("entries-taken", _named("monitor.history"))
    read["parameters"] = [_parameter("after", "The `seq` of the last that is known."), _parameter("limit", "1 to 500.")]
    forget["parameters"] = [
        _parameter("until", "The `seq` of the last that is kept; it and all before it are forgotten.")
    ]
    path = "/v1/monitor.history/{ident}/entries"
    return {path: {"parameters": [_ident_of("history")], "get": read, "delete": forget}}


def _file(binary: Json) -> Json:
    return {"200": {"description": "The bytes.", "content": binary}, "default": _error()}


def _word(name: str, *values: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"enum": list(values)}}


CONNECT = (
    "A TCP port of the VM. A binary message is bytes, an empty one the end of that direction. A text message is a number: "
    "the other side may send so many bytes more; neither sends before. Closed with 1000 when both directions ended."
)


def _disk_paths(part: Json, binary: Json) -> Json:
    """Return what images and volumes have besides: their bytes."""
    upload = _plain("upload", _named("storage.image")) | {"requestBody": {"required": True, "content": binary}}
    upload["parameters"] = [_header("X-Content-SHA256", "What the file's SHA-256 must be, in hex.")]
    append = upload | {"operationId": "append"}
    append["parameters"] = [
        *upload["parameters"],
        _header("Upload-Offset", "Where the piece begins, in bytes; HEAD says how much is here."),
        _header("Upload-Complete", "?0: more will come."),
    ]
    here = {"204": {"description": "Upload-Offset says how much is here."}, "default": _error()}
    disk = {"200": {"description": "A streamOptimized VMDK.", "content": binary}, "default": _error()}
    return {
        "/v1/storage.image/{ident}/{part}": {
            "parameters": [_ident_of("image"), part],
            "put": upload,
            "patch": append,
            "head": {"operationId": "offset", "responses": here},
        },
        "/v1/storage.volume/{ident}/content": {
            "parameters": [_ident_of("volume")],
            "get": {"operationId": "download", "responses": disk},
        },
    }


def _vm_paths(text: Json, socket: Json) -> Json:
    """Return what a VM has besides: its log, console and ports."""
    tail = _parameter("tail_bytes", "How much of the end, in bytes.")
    way = [
        _parameter("port", "The TCP port."),
        _parameter("network", "Which of the VM's networks; left out: the first with a router."),
    ]
    return {
        "/v1/compute.vm/{ident}/log": {
            "parameters": [_ident_of("VM")],
            "get": {"operationId": "log", "parameters": [tail], "responses": text},
        },
        "/v1/compute.vm/{ident}/console": {
            "parameters": [_ident_of("VM")],
            "get": {"operationId": "console", "responses": socket},
        },
        "/v1/compute.vm/{ident}/connect": {
            "parameters": [_ident_of("VM")],
            "get": {"operationId": "connect", "description": CONNECT, "parameters": way, "responses": socket},
        },
    }


def _mirror_paths(socket: Json) -> Json:
    """Return what a mirror session has besides: its packets, kept by the platform."""
    description = "What the platform keeps of the session. Messages and windows are those of a VM's `connect`."
    asked = [
        _parameter("want", "packets: as pcapng; flows: as lines of JSON. Left out: packets."),
        _parameter("from", "start: what is kept, and what comes; now: only what comes. Left out: start."),
        _parameter("follow", "1: go on until the session ends."),
    ]
    return {
        "/v1/mirror.session/{ident}/packets": {
            "parameters": [_ident_of("mirror session")],
            "get": {"operationId": "packets", "description": description, "parameters": asked, "responses": socket},
        },
    }


def _resource(kind: Kind, by_type: dict[Any, Json], condition: Json) -> Json:
    text, number = {"type": "string"}, {"type": "integer"}
    return {
        "title": kind.name,
        "description": kind.summary,
        "type": "object",
        "properties": {
            "kind": {"const": kind.name},
            **{word: text for word in ("id", "name", "account", "account_id", "owner", "zone", "vdc", "host")},
            "labels": {"type": "object", "additionalProperties": text},
            **{word: number for word in ("generation", "observed_generation", "revision")},
            "created_at": {"type": "string", "format": "date-time"},
            "deleting_at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
            "desired": _section(kind.desired, by_type),
            "assigned": _or_null(_section(kind.assigned, by_type)),
            "observed": _or_null(_section(kind.observed, by_type)),
            "conditions": {"type": "array", "items": condition},
        },
        "required": ["kind", "id", "name", "revision", "desired", "conditions"],
    }


def _page(kind: Kind) -> Json:
    return {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _named(kind.name)},
            "next": _or_null({"type": "string"}),
            "revision": {"type": "integer"},
        },
        "required": ["items", "next", "revision"],
    }


def _body(kind: Kind, by_type: dict[Any, Json]) -> Json:
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "account": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "desired": _section(kind.desired, by_type),
            "revision": {"type": "integer", "description": "Refuse when somebody wrote since this revision."},
        },
        "additionalProperties": False,
    }


def _problem() -> Json:
    words = ("type", "title", "detail", "code", "field", "request_id")
    return {
        "type": "object",
        "description": "RFC 9457; `code` is stable, `field` names the offending field.",
        "properties": {"status": {"type": "integer"}, **{word: {"type": "string"} for word in words}},
        "required": ["type", "title", "status", "detail", "code", "request_id"],
    }


def _operation(
    kind: Kind,
    verb: str,
    schema: Json,
    parameters: Iterable[tuple[str, str]],
    status: str = "200",
    body: Json | None = None,
) -> Json:
    operation = _plain(f"{kind.name}.{verb}", schema, status)
    operation |= {"tags": [kind.name], "parameters": [_parameter(name, text) for name, text in parameters]}
    return operation | (_json_body(body) if body is not None else {})


def _usage_path() -> Json:
    parameters = [
        _parameter("since", "From when (RFC 3339); left out: the beginning of the month, UTC."),
        _parameter("until", "Until when; left out: now."),
        _parameter("per", "hour, day, month (of UTC) or all: a line for each."),
        _parameter("by", "object or account: what a line is about."),
        _parameter("id", "Only of the object with this id."),
    ]
    return {"parameters": parameters, "get": _plain("usage", {"type": "object"})}


def _plain(word: str, schema: Json, status: str = "200") -> Json:
    content = {"application/json": {"schema": schema}}
    return {
        "operationId": word,
        "responses": {status: {"description": "Done.", "content": content}, "default": _error()},
    }


def _json_body(schema: Json) -> Json:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _error() -> Json:
    return {
        "description": "Refused or failed.",
        "content": {"application/problem+json": {"schema": _named("problem")}},
    }


def _parameter(name: str, text: str) -> Json:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}


def _header(name: str, text: str) -> Json:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _ident(kind: Kind) -> Json:
    return _ident_of(kind.short)


def _ident_of(word: str) -> Json:
    schema = {"type": "string"}
    return {
        "name": "ident",
        "in": "path",
        "required": True,
        "description": f"Id or name of the {word}.",
        "schema": schema,
    }


def _named(name: str) -> Json:
    return {"$ref": REF.format(name=name)}


def _section(section: Any, by_type: dict[Any, Json]) -> Json:
    return by_type.get(section, {"type": "object"})


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}
