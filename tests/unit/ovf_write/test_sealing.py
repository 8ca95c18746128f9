"""Signing a package that is there: what openssl and the reading half say of it, and what is left when it fails."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.unit.ovf.packages import FILES, NAME, NOW, Signer, tar, with_manifest

from pileus.cli.commands.ovf import command
from pileus.ovf.faults import OvfFault
from pileus.ovf.package import open_package
from pileus.ovf.sealing import seal
from pileus.ovf.signature import Trust
from pileus.ovf.signing import Signer as Maker
from pileus.ovf.signing import load_signer
from pileus.ovf.validation import validate

MAKER = Signer("maker", 2)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def refusal(key: bytes, certificate: bytes, at: datetime = NOW, password: bytes | None = None) -> str:
    with pytest.raises(OvfFault) as caught:
        load_signer(key, certificate, at, password)
    return caught.value.faults[0].code


def proof(path: Path, root: Signer = MAKER) -> tuple[str, list[str]]:
    """Return what the package's signature is worth to who trusts ``root``, and its errors."""
    with open_package(path, trust=Trust(at=NOW, roots=(root.certificate,))) as package:
        validate(package)
        found = [fault.code for fault in package.faults.found if fault.severity == "error"]
        return package.signature.state if package.signature else "none", found


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "x.ova").write_bytes(tar(with_manifest(FILES, "sha1")))
    return tmp_path / "x.ova"


def signer() -> Maker:
    return load_signer(pem(MAKER.key), MAKER.pem, NOW)


def test_an_archive_is_signed_in_place_and_in_order(archive: Path) -> None:
    assert seal(archive, signer()) == archive
    assert proof(archive) == ("trusted", [])
    with tarfile.open(archive) as opened:
        assert opened.getnames() == [NAME, "x.mf", "x.cert", "disk1.vmdk"]
        manifest = opened.extractfile("x.mf")
        assert manifest is not None
        assert manifest.read().startswith(b"SHA256(x.ovf)= ")
    assert [path.name for path in archive.parent.iterdir()] == ["x.ova"]


def test_signing_again_replaces_the_signature(archive: Path) -> None:
    for _ in range(2):
        seal(archive, signer())
    assert proof(archive) == ("trusted", [])


def test_a_folder_is_signed_in_place_or_becomes_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    made = seal(folder / NAME, signer(), tmp_path / "new.ova")
    assert not (folder / "x.cert").exists()
    assert proof(made) == ("trusted", [])
    seal(folder, signer())
    assert proof(folder) == ("trusted", [])
    assert sorted(path.name for path in folder.iterdir()) == ["disk1.vmdk", "x.cert", "x.mf", "x.ovf"]


def test_openssl_verifies_the_signature(archive: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    seal(archive, signer())
    folder = archive.parent
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    line, _, certificate = (folder / "x.cert").read_text().partition("\n")
    assert line.startswith("SHA256(x.mf)= ")
    (folder / "signature").write_bytes(bytes.fromhex(line.partition("= ")[2]))
    (folder / "certificate").write_text(certificate)
    key = subprocess.run(
        ["openssl", "x509", "-in", folder / "certificate", "-pubkey", "-noout"], check=True, capture_output=True
    )
    (folder / "public").write_bytes(key.stdout)
    words: list[str | Path] = [
        "-sha256",
        "-verify",
        folder / "public",
        "-signature",
        folder / "signature",
        folder / "x.mf",
    ]
    assert subprocess.run(["openssl", "dgst", *words], check=True, capture_output=True).stdout == b"Verified OK\n"


def test_a_package_that_was_changed_is_not_signed(tmp_path: Path) -> None:
    files = with_manifest(FILES) | {"disk1.vmdk": FILES["disk1.vmdk"].replace(b"grain", b"GRAIN")}
    (tmp_path / "x.ova").write_bytes(before := tar(files))
    with pytest.raises(OvfFault) as caught:
        seal(tmp_path / "x.ova", signer())
    assert "digest-differs" in {fault.code for fault in caught.value.faults}
    assert (tmp_path / "x.ova").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.ova"]


def test_a_key_or_certificate_that_does_not_do_is_refused_with_the_reason() -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    small = rsa.generate_private_key(65_537, 1024)
    good = pem(MAKER.key)
    assert refusal(b"no key", MAKER.pem) == "sign-bad-key"
    assert refusal(pem(elliptic), MAKER.pem) == "sign-bad-key"
    assert refusal(pem(small), MAKER.pem) == "sign-bad-key"
    assert refusal(pem(MAKER.key, b"secret"), MAKER.pem) == "sign-bad-key"
    assert refusal(pem(MAKER.key, b"secret"), MAKER.pem, password=b"wrong") == "sign-bad-key"
    assert refusal(good, b"no certificate") == "sign-bad-certificate"
    assert refusal(good, Signer("other", 1).pem) == "sign-wrong-certificate"
    assert refusal(good, MAKER.pem, NOW + timedelta(days=40)) == "sign-expired"
    assert load_signer(pem(MAKER.key, b"secret"), MAKER.pem, NOW, b"secret").subject == "CN=maker"


def test_the_command_signs_and_says_by_whom(archive: Path, tmp_path: Path) -> None:
    lasting = Signer("lasting", 1, days=36_500)
    (tmp_path / "key").write_bytes(pem(lasting.key))
    (tmp_path / "cert").write_bytes(lasting.pem)
    words = ["sign", str(archive), "--key", str(tmp_path / "key"), "--cert", str(tmp_path / "cert")]
    ended = CliRunner().invoke(command, [*words, "--out", str(tmp_path / "new.ova")])
    assert (ended.exit_code, ended.stdout) == (0, f"{tmp_path / 'new.ova'} is signed by CN=lasting\n")
    assert proof(tmp_path / "new.ova", lasting) == ("trusted", [])
    assert CliRunner().invoke(command, [*words, "--out", str(tmp_path / "new.ova")]).exit_code
