"""Files that the CLI reads and writes: contexts and documents."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import click
import pytest

from pileus.cli import contexts, documents
from pileus.cli.contexts import Context
from pileus.cli.failure import NOT_SIGNED_IN, USAGE, Failure


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "deep" / "config.json"
    monkeypatch.setenv("PILEUS_CONFIG", str(file))
    return file


def test_a_context_is_kept_readable_by_its_owner_only(config: Path) -> None:
    one = Context(server="https://a:1", ca="pem", key="pil_x", account="acme")
    contexts.put("one", one)
    contexts.put("two", Context(server="https://b:1", ca="", key=""), current=False)
    assert contexts.choose("") == one
    assert contexts.choose("two").server == "https://b:1"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert [file.name for file in config.parent.iterdir()] == ["config.json"]


def test_without_a_context_the_way_to_one_is_said() -> None:
    with pytest.raises(Failure) as failed:
        contexts.choose("")
    assert failed.value.exit_code == NOT_SIGNED_IN
    assert "pileus up" in failed.value.hint


def test_an_unknown_context_is_answered_with_the_closest() -> None:
    contexts.put("production", Context(server="https://a:1", ca="", key=""))
    with pytest.raises(Failure, match='no context "prodution"; did you mean production'):
        contexts.choose("prodution")


def test_a_file_that_is_no_contexts_file_is_named(config: Path) -> None:
    config.parent.mkdir()
    for text in ("", "{", '{"contexts": {"a": {"server": 1}}}', "\xff"):
        config.write_text(text, encoding="latin-1")
        with pytest.raises(Failure, match="is not a contexts file"):
            contexts.load()


def test_keys_that_others_may_read_are_warned_of(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contexts.put("one", Context(server="https://a:1", ca="", key="k"))
    config.chmod(0o644)
    contexts.load()
    assert "chmod 600" in capsys.readouterr().err


def read(tmp_path: Path, text: str) -> list[documents.Document]:
    file = tmp_path / "wish.yaml"
    file.write_text(text)
    return documents.read((str(file),))


def test_documents_of_yaml_and_json_are_read_alike(tmp_path: Path) -> None:
    yaml = "kind: vm\nname: web\naccount: acme\nlabels: {tier: web}\ndesired:\n  vcpus: 1\n---\n---\nkind: network\nname: n\n"
    first, second = read(tmp_path, yaml)
    assert (first.kind.name, first.name, first.account, first.labels) == ("compute.vm", "web", "acme", {"tier": "web"})
    assert first.desired == {"vcpus": 1}
    assert (second.kind.name, second.desired, second.labels) == ("network.network", {}, {})
    json = '{"items": [{"kind": "compute.vm", "name": "a", "id": "x", "revision": 3, "conditions": []}]}'
    assert [document.name for document in read(tmp_path, json)] == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: vm", "name is missing"),
        ("name: vm", "kind is missing"),
        ("kind: vm\nname: a\nspec: {}", "there is no key 'spec' here"),
        ("kind: vm\nname: a\ndesird: {}", "did you mean desired"),
        ("kind: vm\nname: 1", "name must be a text, not 1"),
        ("kind: vm\nname: a\ndesired: [1]", "desired must be a mapping"),
        ("kind: vm\nname: a\nlabels: {n: 1}", "a label's value must be a text, not 1"),
        ("- just\n- words", "a document is a mapping"),
        ("a: [", "is neither YAML nor JSON"),
        ("!!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
    ],
)
def test_a_document_that_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Failure) as failed:
        read(tmp_path, text)
    assert message in failed.value.message
    assert "wish.yaml" in failed.value.message
    assert failed.value.exit_code == USAGE


def test_an_unknown_kind_in_a_document_is_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="did you mean volume"):
        read(tmp_path, "kind: volum\nname: a")


def test_a_folder_is_its_files_in_order_and_a_dash_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wishes"
    folder.mkdir()
    with pytest.raises(Failure, match=r"no \.yaml, \.yml or \.json file"):
        documents.read((str(folder),))
    (folder / "2.yaml").write_text("kind: vm\nname: b")
    (folder / "1.json").write_text('{"kind": "vm", "name": "a"}')
    (folder / "notes.txt").write_text("no")
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: vm\nname: c"))
    assert [document.name for document in documents.read((str(folder), "-"))] == ["a", "b", "c"]
    with pytest.raises(Failure, match=r"cannot read .*missing: No such file"):
        documents.read((str(tmp_path / "missing"),))
