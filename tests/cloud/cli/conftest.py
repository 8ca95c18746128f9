"""One server for all tests of the CLI; each test has an account of its own."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from pileus.cli import contexts
from pileus.cli.main import main

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.cli_world import cloud as started_cloud
else:
    from cli_world import cloud as started_cloud

_numbers = itertools.count(1)


@dataclass
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, decoded."""
        return msgspec.json.decode(self.out)


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The server, with a zone, image and offering, so that VMs can be made."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with started_cloud(tmp_path_factory.mktemp("cloud")) as it:
        yield it
    structlog.reset_defaults()


@pytest.fixture
def pileus(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``pileus`` in this process as the operator, and return what came of it."""
    monkeypatch.setenv("PILEUS_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    contexts.put("local", cloud.operator)

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    if run("get", "zone", "local").code:
        for make in (
            ("create", "zone", "local"),
            ("create", "offering", "tiny", "--vcpus", "1", "--memory-mib", "128", "--disk-gib", "1"),
            ("create", "image", "tiny", "--format", "raw", "--file", __file__),  # any file will do: nobody reads it
        ):
            assert run(*make).code == 0
    return run


@pytest.fixture
def account(pileus: Run) -> str:
    """A fresh account with its vdc and network."""
    name = f"acme-{next(_numbers)}"
    ran = pileus("create", "account", name)
    assert (ran.code, ran.out) == (0, f"account {name} created\n"), ran.err
    return name
