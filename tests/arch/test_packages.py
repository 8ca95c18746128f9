"""What must be installed is said once, and its licences let everybody use it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.code import ROOT

from pileus.drivers.host.disk.command import PACKAGES as DISK_PACKAGES
from pileus.drivers.host.ovs.command import PACKAGES as SWITCH_PACKAGES
from pileus.image.build import BUILD_PACKAGES

PERMISSIVE = re.compile(r"\b(MIT|MIT-0|BSD|Apache|ISC|PSF|Python Software Foundation)\b", re.IGNORECASE)

EXCEPTIONS = {
    "qemu-qmp": "LGPL: imported unchanged, replaceable; docs/decisions/0011",
    "hypothesis": "MPL-2.0: only for developers",
    "pathspec": "MPL-2.0: only for developers",
    "tomlkit": "MIT",
}


def listed_packages() -> set[str]:
    lines = (line.partition("#")[0] for line in (ROOT / "tools" / "packages.txt").read_text().splitlines())
    return {word for line in lines for word in line.split()}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def needed(names: list[str]) -> Iterator[str]:
    """Yield the names of the distributions that ``names`` need, directly or not."""
    seen: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name in seen:
            continue
        seen.add(name)
        yield name
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)


def direct(*, developers: bool) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(project["optional-dependencies"]["dev"] if developers else ())]
    return [Requirement(text) for text in texts]


def licence(name: str) -> str:
    """Return what a distribution says of its licence."""
    said = importlib.metadata.metadata(name)
    classifiers = [text for text in said.get_all("Classifier") or () if text.startswith("License")]
    texts = [text for field in ("License-Expression", "License") for text in said.get_all(field) or ()]
    return " ".join([*(text[:60] for text in texts), *classifiers])


def test_set_up_installs_what_drivers_and_image_builder_need() -> None:
    wanted = {*DISK_PACKAGES.values(), *SWITCH_PACKAGES.values(), *BUILD_PACKAGES, "qemu-system-x86", "xorriso"}
    assert wanted - listed_packages() == set()


def test_the_lock_names_a_fitting_version_of_everything_that_is_needed() -> None:
    versions = locked()
    for requirement in direct(developers=True):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)
    names = [requirement.name for requirement in direct(developers=True)]
    assert {name for name in needed(names) if name not in versions} == set()


def test_the_lock_names_no_host_and_no_index() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line), line


def test_every_dependency_is_permissive_or_a_known_exception() -> None:
    names = set(needed([requirement.name for requirement in direct(developers=True)]))
    refused = {name: licence(name) for name in names if not PERMISSIVE.search(licence(name))}
    assert set(refused) - set(EXCEPTIONS) == set(), refused


def test_developers_exceptions_are_not_needed_by_users() -> None:
    names = set(needed([requirement.name for requirement in direct(developers=False)]))
    assert names & set(EXCEPTIONS) <= {"qemu-qmp"}
