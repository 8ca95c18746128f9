"""Pure parts of the server: problems, log records, tokens, certificate names."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.kernel.errors import Bug, Conflict, Invalid, PileusError, QuotaExceeded, Stuck, Transient, Unauthenticated
from pileus.server import logs, problems
from pileus.server.ca import SPIFFE, host_of
from pileus.server.joining import Inside, read_token


@settings(deadline=None)
@given(st.text(), st.text(max_size=50))
def test_any_text_is_one_line_of_ascii_in_the_log(text: str, word: str) -> None:
    line = logs.render(None, "info", {"event": text, word: text})
    assert line.isascii()
    assert not any(character in line for character in "\r\n\x1b\x7f")
    assert isinstance(json.loads(line)["event"], str)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["Cs"]), min_size=1))
def test_half_a_character_does_not_break_a_record(text: str) -> None:
    assert logs.render(None, "info", {"event": text}).isascii()


def test_a_long_text_is_cut_and_says_so() -> None:
    record = json.loads(logs.render(None, "info", {"event": "x" * 1_000_000}))
    assert record["event"].endswith("(1000000 characters)")
    assert len(record["event"]) < 3_000


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("m", field="desired.x"), 400, "invalid"),
        (Unauthenticated("m"), 401, "unauthenticated"),
        (Conflict("m", code="stale-revision"), 409, "stale-revision"),
        (QuotaExceeded("m"), 409, "quota-exceeded"),
        (Transient("m"), 503, "transient"),
        (Stuck("NoImage", "m"), 500, "stuck"),
        (Bug("m"), 500, "bug"),
        (problems.TooLarge("m"), 413, "too-large"),
        (problems.NoSpace("m"), 507, "no-space"),
    ],
)
def test_every_error_is_a_problem_with_its_code(error: PileusError, status: int, code: str) -> None:
    said, text = problems.body(problems.of(error), "r1")
    problem = msgspec.json.decode(text)
    assert (said, problem["status"], problem["code"], problem["detail"]) == (status, status, code, "m")
    assert problem.get("field") == error.field


def test_a_defect_says_nothing_of_itself() -> None:
    for defect in (KeyError("/etc/secret"), RuntimeError("password"), AssertionError()):
        status, text = problems.body(problems.of(defect), "r1")
        assert status == 500
        assert b"secret" not in text
        assert b"password" not in text


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_token_is_refused_and_nothing_else_happens(content: bytes) -> None:
    for token in (content.decode("latin-1"), base64.urlsafe_b64encode(content).decode()):
        with pytest.raises(Unauthenticated):
            read_token(token)


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_token_says_what_was_put_in(ca: str, secret: str) -> None:
    inside = Inside(ca_sha256=ca, secret=secret)
    assert read_token(base64.urlsafe_b64encode(msgspec.json.encode(inside)).decode().rstrip("=")) == inside


def test_a_certificate_names_one_host_of_our_form_or_none() -> None:
    assert host_of([SPIFFE + "a"]) == "a"
    assert host_of([SPIFFE + "a", "https://other"]) == "a"
    for uris in ([], ["spiffe://other/host/a"], [SPIFFE + "a", SPIFFE + "b"], ["http://" + SPIFFE]):
        assert host_of(uris) is None
