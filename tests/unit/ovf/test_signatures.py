"""Who signed a package: the signature, the chain, the time, and what the signature is worth."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.ovf.packages import (
    DISK_BYTES,
    FILES,
    NAME,
    NOW,
    TEXT,
    Forward,
    Signer,
    codes,
    manifest,
    mild,
    tar,
    with_manifest,
)

from pileus.ovf.certificate import read_roots
from pileus.ovf.faults import OvfFault
from pileus.ovf.package import Package, open_package, open_stream
from pileus.ovf.signature import Trust
from pileus.ovf.validation import validate

ROOT = Signer("root", 0, ca=True)
MIDDLE = Signer("middle", 1, ROOT, ca=True)
MAKER = Signer("maker", 2, MIDDLE)
TRUST = Trust(at=NOW, roots=(ROOT.certificate,))
ALONE = Signer("alone", 2)


def checked(files: dict[str, bytes], folder: Path, trust: Trust | None = TRUST) -> list[Package]:
    """Return the package validated out of a file, and on a stream."""
    archive = tar(files)
    (folder / "x.ova").write_bytes(archive)
    found = [open_package(folder / "x.ova", trust=trust), open_stream(Forward(archive), trust=trust)]
    for package in found:
        validate(package)
        package.close()
    return found


def signed(certificate: bytes, listed: bytes | None = None) -> dict[str, bytes]:
    listed = manifest(FILES) if listed is None else listed
    return {NAME: TEXT, "x.mf": listed, "x.cert": certificate, "disk1.vmdk": DISK_BYTES}


def states(packages: list[Package]) -> set[str]:
    return {package.signature.state if package.signature else "none" for package in packages}


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
def test_a_chain_to_a_trusted_root_is_believed(algorithm: str, tmp_path: Path) -> None:
    certificate = MAKER.sign(manifest(FILES), algorithm=algorithm, more=MIDDLE.pem)
    for package in checked(signed(certificate), tmp_path):
        assert codes(package) == []
        assert mild(package) == (["sha1"] if algorithm == "SHA1" else [])
        assert package.signature is not None
        assert (package.signature.state, package.signature.subject) == ("trusted", "CN=maker")


def test_a_certificate_may_be_trusted_itself(tmp_path: Path) -> None:
    files = signed(ALONE.sign(manifest(FILES)))
    assert states(checked(files, tmp_path, Trust(at=NOW, roots=(ALONE.certificate,)))) == {"trusted"}


@pytest.mark.parametrize("certificate", [ALONE.sign(manifest(FILES)), MAKER.sign(manifest(FILES))])
def test_a_signer_without_a_way_to_a_root_is_unknown(certificate: bytes, tmp_path: Path) -> None:
    found = checked(signed(certificate), tmp_path)
    assert states(found) == {"unknown-signer"}
    assert {tuple(codes(package)) for package in found} == {()}
    assert "signed by unknown" in str(found[0].faults.found[0])


def test_one_who_may_not_sign_for_others_makes_nobody_known(tmp_path: Path) -> None:
    not_a_ca = Signer("middle", 1, ROOT)
    maker = Signer("maker", 2, not_a_ca)
    files = signed(maker.sign(manifest(FILES), more=not_a_ca.pem))
    assert states(checked(files, tmp_path)) == {"unknown-signer"}
    # The name of a root, and another key.
    other = Signer("root", 1, ca=True)
    files = signed(Signer("maker", 2, other).sign(manifest(FILES), more=other.pem))
    assert states(checked(files, tmp_path)) == {"unknown-signer"}


def test_a_signature_over_something_else_is_refused(tmp_path: Path) -> None:
    for certificate in (
        MAKER.sign(b"other", more=MIDDLE.pem),
        MAKER.sign(manifest(FILES)).replace(MAKER.pem, ALONE.pem[:-60]),
    ):
        found = checked(signed(certificate), tmp_path)
        assert states(found) == {"invalid"}
        assert all(codes(package) for package in found)


@pytest.mark.parametrize("days", [-40, 40])
def test_a_certificate_out_of_its_time_is_refused(days: int, tmp_path: Path) -> None:
    trust = Trust(at=NOW + timedelta(days=days), roots=(ROOT.certificate,))
    found = checked(signed(MAKER.sign(manifest(FILES), more=MIDDLE.pem)), tmp_path, trust)
    assert {tuple(codes(package)) for package in found} == {("certificate-expired",)}


def test_a_certificate_for_another_manifest_is_refused(tmp_path: Path) -> None:
    found = checked(signed(MAKER.sign(manifest(FILES), "y.mf")), tmp_path)
    assert {tuple(codes(package)) for package in found} == {("wrong-manifest",)}


def test_a_certificate_without_a_manifest_is_refused(tmp_path: Path) -> None:
    files = {NAME: TEXT, "x.cert": MAKER.sign(manifest(FILES)), "disk1.vmdk": DISK_BYTES}
    for package in checked(files, tmp_path):
        assert codes(package) == ["certificate-without-manifest"]


def test_what_a_signed_manifest_lacks_is_refused(tmp_path: Path) -> None:
    for left in ({NAME: TEXT}, {"disk1.vmdk": DISK_BYTES}):
        listed = manifest(left)
        for package in checked(signed(MAKER.sign(listed, more=MIDDLE.pem), listed), tmp_path):
            assert codes(package) == ["not-listed"]


def test_manifest_and_certificate_may_be_at_the_end(tmp_path: Path) -> None:
    listed = manifest(FILES)
    certificate = MAKER.sign(listed, more=MIDDLE.pem)
    for files in (
        FILES | {"x.mf": listed, "x.cert": certificate},
        with_manifest(FILES) | {"x.cert": certificate},
        FILES | {"x.cert": certificate, "x.mf": listed},
    ):
        assert states(checked(files, tmp_path)) == {"trusted"}
        changed = files | {"disk1.vmdk": DISK_BYTES[:-1] + b"X"}
        assert {tuple(codes(package)) for package in checked(changed, tmp_path)} == {("digest-differs",)}


@pytest.mark.parametrize("junk", [b"", b"\0" * 99, b"SHA256(x.mf)= 00\n", b"MD5(x.mf)= 00\n" + ALONE.pem, ALONE.pem])
def test_junk_is_no_certificate(junk: bytes, tmp_path: Path) -> None:
    found = checked(signed(junk), tmp_path)
    assert states(found) == {"invalid"}
    assert all(len(codes(package)) == 1 for package in found)


def test_a_trust_store_without_certificates_is_refused() -> None:
    assert len(read_roots(ROOT.pem + ALONE.pem)) == 2
    with pytest.raises(OvfFault, match="bad-trust"):
        read_roots(b"nothing")
