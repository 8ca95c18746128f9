"""Shared by every suite: skips are counted by reason, and CI fails on one that nobody allowed."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parent / "allowed_skips.txt"

SKIPS = pytest.StashKey[Counter[str]]()


def allowed_reasons() -> list[str]:
    """Return the patterns (fnmatch) of the reasons for which a test may be skipped in CI."""
    lines = (line.partition("  # ")[0].strip() for line in ALLOWED.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pytest_configure(config: pytest.Config) -> None:
    """Start counting."""
    config.stash[SKIPS] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:  # type: ignore[misc]
    """Count a skip with its reason; an expected failure counts as one."""
    report: pytest.TestReport = yield
    if report.skipped:
        expected = getattr(report, "wasxfail", None)
        reason = f"expected failure: {expected}" if expected is not None else _reason(report)
        item.config.stash[SKIPS][reason] += 1
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> pytest.CollectReport:  # type: ignore[misc]
    """Count a module that was skipped whole."""
    report: pytest.CollectReport = yield
    if report.skipped:
        collector.config.stash[SKIPS][_reason(report)] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the skips by reason, and which of them CI does not allow."""
    patterns = allowed_reasons()
    for reason, count in sorted(config.stash[SKIPS].items()):
        mark = "" if _is_allowed(reason, patterns) else "  (not in tests/allowed_skips.txt)"
        terminalreporter.write_line(f"skipped {count}: {reason}{mark}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, a skip that is not allowed fails the suite."""
    patterns = allowed_reasons()
    refused = [reason for reason in session.config.stash[SKIPS] if not _is_allowed(reason, patterns)]
    if refused and os.environ.get("CI") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")


def _is_allowed(reason: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(reason, pattern) for pattern in patterns)


# A shell that starts a job in the background has it ignore SIGINT, and children inherit that: ctrl-C could not be tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
