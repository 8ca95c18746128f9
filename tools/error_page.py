"""The page of error codes, from the error tree and from every ``code="…"`` in the source."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from msgspec import Struct

from pileus.drivers.host import errors as driver_errors
from pileus.image import types as image_types
from pileus.kernel import errors
from pileus.kernel.errors import PileusError
from tools.code import assigned_texts, calls, files, first_sentence, keyword, text_of
from tools.pages import GENERATED, escape

INTRO = """# Errors

Every refusal is `application/problem+json` (RFC 9457) with `type` (`urn:pileus:error:CODE`), `title`, `status`, `detail`,
`code`, `field` when one field is meant, and `request_id`. Codes are stable; the detail names the object and the next step.
The CLI prints the detail after `error:`; its exit codes are in the [CLI reference](cli.md).
"""


class Use(Struct, frozen=True, order=True):
    """A code as one place in the source gives it."""

    code: str
    error: str
    message: str


def errors_page() -> str:
    """Return the page."""
    classes = {error.__name__: error for error in _classes()}
    return GENERATED + INTRO + "\n" + "\n".join([*_tree(classes), "", *_codes(classes)]) + "\n"


def _classes() -> Iterator[type[PileusError]]:
    for module in (errors, driver_errors, image_types):
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, PileusError) and value.__module__ == module.__name__:
                yield value


def _tree(classes: dict[str, type[PileusError]]) -> Iterator[str]:
    yield "## Classes"
    yield ""
    yield "| class | is a | code | HTTP | meaning |"
    yield "|---|---|---|---|---|"
    for name, error in classes.items():
        parent = error.__mro__[1].__name__.replace("Exception", "")
        meaning = escape(first_sentence(error.__doc__))
        status = str(error.status) if issubclass(error, errors.Rejected | errors.Transient) else ""
        yield f"| {name} | {parent} | `{error.code}` | {status} | {meaning} |"


def _codes(classes: dict[str, type[PileusError]]) -> Iterator[str]:
    yield "## Codes"
    yield ""
    yield "What callers may meet beyond the codes of the classes, with one message each (… stands for values)."
    yield ""
    yield "| code | HTTP | message |"
    yield "|---|---|---|"
    seen = set()
    for use in sorted(set(_uses())):
        status = str(classes[use.error].status) if use.error in classes else ""
        if (use.code, status) not in seen:
            seen.add((use.code, status))
            yield f"| `{use.code}` | {status} | {escape(use.message)} |"


def _uses() -> Iterator[Use]:
    for file in files():
        texts = assigned_texts(file)
        for name, call in calls(file):
            code = text_of(keyword(call, "code"))
            if code and name[:1].isupper() and name != "End":
                yield Use(code, name, text_of(call.args[0] if call.args else None, texts))
