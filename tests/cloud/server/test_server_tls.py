"""One port with TLS: people by key, agents by certificates of the cluster and no others."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.cloud.server.server_rig import Rig, private_pem, request_for, running
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from pileus.kernel.store import statements as sql
from pileus.server.ca import SPIFFE, Authority
from pileus.storage.volume.types import ImageSource, VolumeAssigned, VolumeDesired

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A server with real TLS."""
    async with running(tmp_path) as it:
        yield it


async def test_people_need_no_certificate_and_agents_no_key_on_the_same_port(rig: Rig) -> None:
    assert (await rig("GET", "/v1/whoami")).json["user"] == "admin"
    certificate = await rig.joined(await rig.host("h1"))
    async with stream(rig, certificate) as socket:
        await socket.send(b"hello")
        assert await socket.recv() == b"hello"


async def test_the_server_is_who_the_cluster_says_and_nobody_else_is(rig: Rig, tmp_path: Path) -> None:
    async with running(tmp_path / "other") as other:
        with pytest.raises(ssl.SSLCertVerificationError):
            await rig("GET", "/v1", context=other.trust())
    with pytest.raises(ssl.SSLCertVerificationError):
        await rig("GET", "/v1", context=ssl.create_default_context())
    old = rig.trust()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await rig("GET", "/v1", context=old)


async def test_a_stream_without_certificate_is_refused_whatever_headers_claim(rig: Rig) -> None:
    host = await rig.host("h1")
    claims = {"x-client-cert": f"URI={SPIFFE}{host}", "x-forwarded-client-cert": f"URI={SPIFFE}{host}"}
    assert await refused(rig, None, claims) == 401
    assert await refused(rig, None, {"authorization": f"Bearer {rig.key}"}) == 401


async def test_a_self_signed_certificate_is_refused(rig: Rig, tmp_path: Path) -> None:
    assert await refused(rig, forged(tmp_path, await rig.host("h1"))) == 0


async def test_another_clusters_certificate_is_refused(rig: Rig, tmp_path: Path) -> None:
    async with running(tmp_path / "other") as other:
        theirs = await other.joined(await other.host("h1"))
        assert await refused(rig, theirs) == 0


async def test_an_expired_certificate_is_refused(rig: Rig, tmp_path: Path) -> None:
    host = await rig.host("h1")
    old = await authority(rig, clock=lambda: 1_600_000_000.0)
    key, csr = request_for("old")
    path = tmp_path / "old.pem"
    path.write_text(key + old.agent_certificate(host, csr).pem)
    assert await refused(rig, path) == 0


async def test_a_certificate_for_servers_is_refused(rig: Rig, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "server.pem"
    path.write_text(private_pem(key) + (await authority(rig)).server_certificate(key, ["localhost"]))
    assert await refused(rig, path) == 0
    assert await refused(rig, rig.folder / "data/tls/server.pem") == 0


async def test_a_certificate_that_was_never_handed_out_is_refused(rig: Rig, tmp_path: Path) -> None:
    host = await rig.host("h1")
    key, csr = request_for("unknown")
    path = tmp_path / "unknown.pem"
    path.write_text(key + (await authority(rig)).agent_certificate(host, csr).pem)
    assert await refused(rig, path) == 401


async def test_joining_again_revokes_the_older_certificate_and_ends_its_stream(rig: Rig) -> None:
    host = await rig.host("h1")
    first = await rig.joined(host, "first")
    async with stream(rig, first) as socket:
        second = await rig.joined(host, "second")
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                await socket.recv()
    assert await refused(rig, first) == 401
    async with stream(rig, second):
        pass


async def test_a_deleted_hosts_certificate_is_refused(rig: Rig) -> None:
    host = await rig.host("h1")
    certificate = await rig.joined(host)
    await rig("DELETE", f"/v1/infra.host/{host}")
    await rig.gone("infra.host", host)
    assert await refused(rig, certificate) == 401


async def test_an_agents_certificate_is_no_key_and_a_key_is_no_certificate(rig: Rig) -> None:
    context = rig.trust(await rig.joined(await rig.host("h1")))
    assert (await rig("GET", "/v1/infra.host", headers={"authorization": ""}, context=context)).status == 401
    assert (await rig("POST", "/agent/v1/renew", {"csr": ""})).status == 401


async def test_a_join_token_is_good_once_and_names_the_authority(rig: Rig) -> None:
    host = await rig.host("h1")
    made = await rig("POST", f"/v1/infra.host/{host}/join-token")
    assert made.status == 201
    token = made.json["token"]
    inside = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    pem = (await rig("GET", "/agent/v1/ca", headers={"authorization": ""})).body
    fingerprint = x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    assert inside["ca_sha256"] == fingerprint
    content = b"".join(path.read_bytes() for path in (rig.folder / "data").glob("pileus.db*"))
    assert inside["secret"].encode() not in content
    answers = await asyncio.gather(
        *(rig("POST", "/agent/v1/join", {"token": token, "csr": request_for(f"a{n}")[1]}) for n in range(5))
    )
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401, 401]


@pytest.mark.parametrize(
    "token", ["", "x", "eyJ9", base64.urlsafe_b64encode(b'{"ca_sha256":"","secret":"x"}').decode()]
)
async def test_a_made_up_token_is_refused(rig: Rig, token: str) -> None:
    answer = await rig("POST", "/agent/v1/join", {"token": token, "csr": request_for("a")[1]})
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_a_token_stays_good_when_the_request_is_bad(rig: Rig) -> None:
    host = await rig.host("h1")
    token = (await rig("POST", f"/v1/infra.host/{host}/join-token")).json["token"]
    weak = request_for("a", rsa.generate_private_key(65537, 1024))[1]
    for csr in ("", "nonsense", weak, "x" * 9000):
        bad = await rig("POST", "/agent/v1/join", {"token": token, "csr": csr})
        assert (bad.status, bad.json["field"]) == (400, "csr")
    assert (await rig("POST", "/agent/v1/join", {"token": token, "csr": request_for("a")[1]})).status == 200


async def test_only_an_operator_makes_join_tokens(rig: Rig) -> None:
    host = await rig.host("h1")
    await rig("POST", "/v1/tenancy.account", {"name": "acme"})
    user = {"name": "boss", "account": "acme", "desired": {"role": "owner"}}
    assert (await rig("POST", "/v1/tenancy.user", user)).status == 201
    key = {"name": "k", "account": "acme", "desired": {"user": "boss"}}
    secret = (await rig("POST", "/v1/tenancy.key", key)).json["secret"]
    headers = {"authorization": f"Bearer {secret}"}
    assert (await rig("POST", f"/v1/infra.host/{host}/join-token", headers=headers)).status in (403, 404)


async def test_a_renewed_certificate_works_and_so_does_the_old_one_until_it_ends(rig: Rig) -> None:
    host = await rig.host("h1")
    old = await rig.joined(host)
    key, csr = request_for("renewed")
    answer = await rig("POST", "/agent/v1/renew", {"csr": csr}, context=rig.trust(old))
    assert answer.json["host"] == host
    new = rig.folder / "renewed.pem"
    new.write_text(key + answer.json["certificate"])
    for certificate in (old, new):
        async with stream(rig, certificate) as socket:
            await socket.send(b"x")
            assert await socket.recv() == b"x"


async def test_a_certificate_names_its_host_whatever_the_request_says(rig: Rig) -> None:
    one, two = await rig.host("h1"), await rig.host("h2")
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SPIFFE + two)])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, two)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    token = (await rig("POST", f"/v1/infra.host/{one}/join-token")).json["token"]
    text = csr.sign(key, hashes.SHA256()).public_bytes(_pem()).decode()
    answer = await rig("POST", "/agent/v1/join", {"token": token, "csr": text})
    certificate = x509.load_pem_x509_certificate(answer.json["certificate"].encode())
    said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert said.get_values_for_type(x509.UniformResourceIdentifier) == [SPIFFE + one]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


async def test_a_host_fetches_only_images_that_its_volumes_need(rig: Rig) -> None:
    one, two = await rig.host("h1"), await rig.host("h2")
    first, second = rig.trust(await rig.joined(one)), rig.trust(await rig.joined(two))
    id = (await rig("POST", "/v1/storage.image", {"name": "tiny", "desired": {}})).json["id"]
    folder = rig.folder / "data/images" / id
    folder.mkdir()
    (folder / "disk").write_bytes(b"content" * 1000)
    source = ImageSource(id=id, sha256="", size_bytes=0, virtual_size_bytes=0)
    await put(rig, "storage.volume", VolumeDesired(size_gib=1), VolumeAssigned(zone="", vdc="", host=one, image=source))
    path = f"/agent/v1/image/{id}"
    fetched = await rig("GET", f"{path}/disk", context=first)
    assert (fetched.status, fetched.body) == (200, b"content" * 1000)
    part = await rig("GET", f"{path}/disk", headers={"range": "bytes=6990-"}, context=first)
    assert (part.status, part.body) == (206, (b"content" * 1000)[6990:])
    for context, word in ((second, "disk"), (first, "kernel"), (first, "upload"), (first, "..%2f..%2fpileus.db")):
        assert (await rig("GET", f"{path}/{word}", context=context)).status == 404
    assert (await rig("GET", f"{path}/disk")).status == 401


def stream(rig: Rig, certificate: Path | None, headers: dict[str, str] | None = None) -> connect:
    """Return an agent's connection, to be entered."""
    url = f"wss://127.0.0.1:{rig.started.port}/agent/v1/stream"
    return connect(url, ssl=rig.trust(certificate), additional_headers=headers or {}, proxy=None)


async def refused(rig: Rig, certificate: Path | None, headers: dict[str, str] | None = None) -> int:
    """Return the HTTP status with which a stream is refused; 0 when TLS already refuses."""
    try:
        async with asyncio.timeout(10), stream(rig, certificate, headers):
            raise AssertionError("the stream was accepted")
    except InvalidStatus as error:
        refusal = error.response
    except (ssl.SSLError, OSError, EOFError, InvalidMessage):  # the last: closed before any answer
        return 0
    assert refusal.headers["content-type"] == "application/problem+json"
    return refusal.status_code


async def authority(rig: Rig, clock: Any = None) -> Authority:
    """Return the cluster's authority, for certificates that no server would sign."""
    key = (await rig.started.parts.store.fetch(sql.SETTING, name="ca/key"))[0][0]
    return Authority(rig.started.ca, key, clock or rig.started.parts.store.clock)


async def put(rig: Rig, kind: str, desired: Any, assigned: Any) -> None:
    """Write a resource past admission."""
    from pileus.kernel.kind import Resource

    resource = Resource(id="", kind=kind, name="v", desired=desired, assigned=assigned)
    await rig.started.parts.store.write(lambda tx: tx.create(resource))


def forged(folder: Path, host: str) -> Path:
    """Return a file with a self-signed certificate that claims to be the agent of ``host``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2050, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SPIFFE + host)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "forged.pem"
    path.write_text(private_pem(key) + certificate.public_bytes(_pem()).decode())
    return path


def _pem() -> Any:
    from cryptography.hazmat.primitives import serialization

    return serialization.Encoding.PEM
