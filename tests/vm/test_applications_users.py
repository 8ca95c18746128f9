"""Users of an appliance with sshd and sudo: who has a key gets in, who has a right may, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pileus.image.appliance_build import appliance_with

if TYPE_CHECKING:
    from tests.vm.appliance_rack import LIMIT_S, Rack, a_rack, ready
    from tests.vm.test_applications import MACHINE, Node
else:
    from appliance_rack import LIMIT_S, Rack, a_rack, ready
    from test_applications import MACHINE, Node

pytestmark = [pytest.mark.anyio, pytest.mark.long]

RECIPE = appliance_with("test-logins", {}, packages=["openssh-server", "openssh-client", "sudo", "libpam-modules"])
PAM = "auth required pam_deny.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
SSHD = (
    "cp sudo /etc/pam.d/sudo; "
    "chmod u+s /usr/bin/sudo; mkdir -p /run/sshd; "
    "ssh-keygen -q -t ed25519 -N '' -f $HOME/host; exec /usr/sbin/sshd -D -e -f /dev/null "
    "-h $HOME/host -o UsePAM=no -o AuthorizedKeysFile=/etc/ssh/authorized_keys.d/%u"
)
LOGIN = (
    "umask 077; cat id > $HOME/id; for user in ann ben; do echo $user: $(ssh -i $HOME/id -o StrictHostKeyChecking=no "
    "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes $user@127.0.0.1 "
    "'id -un; sudo -n /bin/busybox id -u; sudo -n /bin/ls -d /root' 2>&1 | tr '\\n' ' '); done"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack(RECIPE) as made:
        yield made


def key_pair() -> tuple[str, str]:
    """Return a private and a public key as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


async def test_who_has_a_key_gets_in_and_who_has_a_right_may(rack: Rack) -> None:
    private, public = key_pair()
    applications: dict[str, Any] = {
        "sshd": {"command": ["sh", "-c", SSHD], "files": {"sudo": PAM}},
        "login": {"command": ["sh", "-c", LOGIN], "files": {"id": private}},
    }
    users: dict[str, Any] = {
        "sshd": {"shell": "/bin/false"},
        "ann": {"keys": [public], "rights": ["/bin/ls"]},
        "ben": {},
    }
    await rack.start(MACHINE, "serial", role="applications")
    await rack.guest.attach(MACHINE, "serial")
    await rack.until(MACHINE, ready)
    node = Node(rack)
    await rack.guest.configure(MACHINE, {"applications": {"sshd": applications["sshd"]}, "users": users})
    await until_printed(node, "sshd", "Server listening")
    await rack.guest.configure(MACHINE, {"applications": applications, "users": users})
    said = await until_printed(node, "login", "ben:")
    print(said)
    ann, ben = said.splitlines()[-2:]
    assert ann.startswith("ann: ann ")
    assert ann.endswith("/root"), "ls she may, as root"
    assert "password is required" in ann, "and nothing else"
    assert "Permission denied" in ben
    await node.ask(do="user", name="ben", keys=[public])
    await node.ask(do="user", name="ann", remove=True)
    await node.ask(do="restart", application="login")
    said = await until_printed(node, "login", "ben:", count=2)
    ann, ben = said.splitlines()[-2:]
    assert "Permission denied" in ann
    assert ben.startswith("ben: ben ")
    assert "/root" not in ben


async def until_printed(node: Node, application: str, words: str, count: int = 1) -> str:
    """Return what an application printed once it said something so often."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            log = str((await node.ask(do="log", application=application, lines=50))[1]["log"])
            if log.count(words) >= count:
                return log
            await asyncio.sleep(0.2)  # nobody tells of what an application prints
