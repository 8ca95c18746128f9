"""Bad input with real processes: what is said, with which exit code, and that nothing is lost or half-made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli.client import Client
from pileus.kernel.clock import iso, system_clock

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import Place, RealCloud, until
else:
    import realcloud
    from realcloud import Place, RealCloud, until

USAGE, REFUSED, NOT_FOUND, TIMED_OUT, UNREACHABLE, NOT_SIGNED_IN = 2, 3, 4, 5, 6, 7

KINDS = ("compute.vm", "storage.volume", "storage.image", "network.port", "network.network", "tenancy.account",
         "tenancy.vdc", "tenancy.key")  # fmt: skip

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
          "--ambient-caps=+dac_read_search", "--bounding-set=-all,+dac_read_search", "--")  # fmt: skip
"""Not root, but able to read a Python that only root may."""

HIDE = 'for each in $HIDDEN; do mount --bind /dev/null "$(readlink -f "$(command -v "$each")")"; done; exec "$@"'
"""What the path names is looked for in /usr/sbin too, so the programs are hidden and not only left out of PATH."""


@pytest.fixture
def place() -> Iterator[Place]:
    """A folder without a cloud."""
    realcloud.need_host()
    with realcloud.temporary("pileus-vm-") as folder:
        yield Place(folder)


@pytest.fixture
def world(cloud: RealCloud) -> Iterator[None]:
    """Everything that was there before the bad input is there after it, and nothing else."""
    before = everything(cloud)
    yield
    assert everything(cloud) == before


def everything(cloud: RealCloud) -> dict[str, Any]:
    """Return what there is, in the database and on the host."""
    with cloud.client() as client:
        rows = {kind: _ids(client, kind) for kind in KINDS}
        usage = client.get("/v1/tenancy.vdc/main/usage", [("account", "acme")])["limits"]
    used = {limit["name"]: limit["used"] for limit in usage}
    return {**rows, "used": used, "folders": cloud.machine_folders(), "files": cloud.volume_files()}


def _ids(client: Client, kind: str) -> set[str]:
    scope = [("all_accounts", "1")] if kind != "tenancy.account" else []
    return {each["id"] for page in client.pages(f"/v1/{kind}", scope) for each in page["items"]}


# what a tenant types

TYPED = [
    (("create", "vm", "odd", "--memory", "512"), USAGE, "there is no flag --memory; did you mean --memory-mib?"),
    (("create", "vm", "odd", "--vcpus", "1", "--memory-mib", "2GiB"), USAGE,
     "--memory-mib takes MiB as a whole number; for 2GiB say 2048"),
    (("create", "vm", "odd", "--disk-gib", "-5"), USAGE, "--disk-gib takes 0 to 65536, not -5"),
    (("create", "account", "acme"), REFUSED, "account acme exists already; choose another name or delete it first"),
    (("create", "vm", "odd", "--address", "10.9.9.9"), REFUSED,
     "10.9.9.9 is outside the network's range 10.1.1.0/24"),
    (("create", "volume", "odd", "--size-gib", "2000"), REFUSED,
     "account acme uses 0 of 1000 disk_gib in vdc main, 2000 more were asked; delete something or ask the operator to "
     "raise the quota"),
    (("create", "vm", "odd", "--image", "nosuch"), REFUSED,
     "there is no image 'nosuch' in account acme; `pileus get image` lists what there is"),
    (("delete", "vm", "nosuch", "-y"), NOT_FOUND,
     "there is no vm 'nosuch' in account acme; `pileus get vm` lists what there is"),
]  # fmt: skip


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("typed", "code", "message"), TYPED, ids=[" ".join(typed[:3]) for typed, _, _ in TYPED])
def test_what_cannot_be_is_refused_and_changes_nothing(
    cloud: RealCloud, typed: tuple[str, ...], code: int, message: str
) -> None:
    account = () if "account" in typed else ("--account", "acme")
    assert cloud.refused(*typed, *account, code=code).splitlines()[0] == f"error: {message}"


APPLIED = [
    ("colour: blue", "desired has no field 'colour'; it has "),
    ("memory_mib: 2GiB\n  vcpus: 1", "desired.memory_mib: expected `int`, got `str` (a whole number of MiB)"),
    ("memory_mib: -2\n  vcpus: 1", "desired.memory_mib: expected `int` >= 0 (a whole number of MiB)"),
]


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("desired", "message"), APPLIED)
def test_a_file_that_says_what_cannot_be_is_refused_and_changes_nothing(
    cloud: RealCloud, desired: str, message: str
) -> None:
    file = cloud.file("bad.yaml", f"kind: vm\nname: odd\naccount: acme\ndesired:\n  {desired}\n")
    said = cloud.refused("apply", "-f", file, code=REFUSED)
    assert said.startswith(f"error: {file}, document 1: vm odd: {message}")


# images that are not what they say


def _with_backing_file(path: Path) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", str(path), "1G"]
    subprocess.run(command, check=True)


def _with_data_file(path: Path) -> None:
    options = f"data_file={path}.data,data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M"], check=True)


def _raw(path: Path) -> None:
    path.write_bytes(b"hello" + bytes(2**20))


@pytest.mark.parametrize(
    ("make", "reason", "message"),
    [
        (_with_backing_file, "BackingFile", "the image has a backing file, which is never followed; "),
        (_with_data_file, "ExternalData", "the image "),
        (_raw, "UnknownFormat", "the image is said to be qcow2 but is of no known format; "),
    ],
    ids=["backing-file", "data-file", "raw-as-qcow2"],
)
@pytest.mark.usefixtures("world")
def test_an_image_that_is_not_what_it_says_is_refused_and_leaves_no_file(
    cloud: RealCloud, make: Any, reason: str, message: str
) -> None:
    file = cloud.folder / "evil.qcow2"
    make(file)
    files = set((cloud.data / "images").rglob("*"))
    said = cloud.refused(
        "create", "image", "evil", "--account", "acme", "--format", "qcow2", "--file", str(file), "--wait", code=REFUSED
    )
    assert f"error: image evil of account acme is refused: {reason}: {message}" in said
    left = {path for path in set((cloud.data / "images").rglob("*")) - files if path.is_file()}
    assert not left
    refused = cloud.refused("create", "vm", "odd", "--account", "acme", "--image", "evil", code=REFUSED)
    assert "image evil is refused" in refused
    cloud.pileus("delete", "image", "evil", "--account", "acme", "-y", "--wait")


# more than there is


@pytest.mark.usefixtures("world")
def test_a_vm_bigger_than_every_host_waits_and_says_how_much_is_free(cloud: RealCloud) -> None:
    (host,) = cloud.json("get", "host")["items"]
    asked = host["observed"]["memory_mib"] + 1
    cloud.pileus("patch", "vdc", "main", "--account", "acme", "--quota-memory-mib", str(asked + 65_536))
    size = ("--vcpus", "1", "--memory-mib", str(asked))
    said = cloud.refused("create", "vm", "big", "--account", "acme", *size, "--wait", "--timeout", "2", code=TIMED_OUT)
    last = said.splitlines()[-2]
    assert last.startswith("error: vm big of account acme is not ready after 2 s: NoCapacity: ")
    assert "no host takes it: NoMemory;" in last
    planned = cloud.pileus("create", "vm", "large", "--account", "acme", *size, "--dry-run")
    assert f" MiB free, {asked} needed" in planned
    assert not cloud.vm("big")["assigned"]["host"]
    cloud.pileus("delete", "vm", "big", "--account", "acme", "-y", "--wait")


# a machine that cannot be a host


def test_a_port_in_use_is_named_and_nothing_stays_running(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        said = place.refused("up", "--data", str(place.data), "--port", port, code=1)
    assert said == f"error: port {port} of 127.0.0.1 is in use by another program; choose another with --port\n"
    assert not realcloud.pids_naming(str(place.folder))
    assert not (place.data / "pileus.db").exists()


def test_a_user_who_is_not_root_is_told_so_and_nothing_is_made(place: Place) -> None:
    done = place.run("up", "--data", str(place.data), prefix=NOBODY)
    assert done.returncode == USAGE, done
    assert done.stderr == "error: this machine cannot be a host yet: root: an agent needs root; run with sudo\n"
    assert not place.data.exists()


def test_a_machine_without_open_vswitch_is_told_the_package_and_nothing_is_made(place: Place) -> None:
    hidden = ("ovs-vswitchd", "ovsdb-server", "ovs-ofctl")
    prefix = ("unshare", "--mount", "--propagation=private", "sh", "-c", HIDE, "sh")
    done = place.run("up", "--data", str(place.data), prefix=prefix, HIDDEN=" ".join(hidden))
    assert done.returncode == USAGE, done
    reasons = "; ".join(f"{each}: not installed: apt-get install openvswitch-switch" for each in hidden)
    assert done.stderr == f"error: this machine cannot be a host yet: {reasons}\n"
    assert not place.data.exists()


# a server that is not there, a key that is not valid any more


def test_a_server_that_does_not_answer_is_named(cloud: RealCloud, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    config = json.loads((cloud.folder / "config.json").read_bytes())
    config["contexts"][config["current"]]["server"] = url
    _write_config(place, config)
    said = place.refused("get", "vm", "-A", code=UNREACHABLE)
    assert said == f"error: no server answers at {url}; start one with `pileus up` or choose another context\n"


def test_a_key_works_until_it_expires_and_then_says_when_that_was(cloud: RealCloud, place: Place) -> None:
    expires_at = iso(system_clock() + 4)
    made = cloud.json("create", "key", "soon", "--user", "admin", "--expires-at", expires_at)
    config = json.loads((cloud.folder / "config.json").read_bytes())
    config["contexts"][config["current"]]["key"] = made["secret"]
    _write_config(place, config)
    assert place.run("whoami").returncode == 0

    def refusal() -> str | None:
        done = place.run("whoami")
        assert done.returncode in (0, NOT_SIGNED_IN), done
        return done.stderr if done.returncode else None

    said = until("the key is refused", refusal, 30)
    assert system_clock() >= datetime.fromisoformat(expires_at).astimezone(UTC).timestamp()
    assert said.splitlines()[0] == (f"error: the key expired at {expires_at}; create another with `pileus create key`")
    cloud.pileus("delete", "key", "soon", "-y", "--wait")


def _write_config(place: Place, config: dict[str, Any]) -> None:
    file = Path(place.environment["PILEUS_CONFIG"])
    file.write_text(json.dumps(config))
    os.chmod(file, 0o600)
