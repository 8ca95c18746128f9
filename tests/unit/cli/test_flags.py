"""Flags of every kind: what is given on the command line is the wish that the type takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pileus.cli.commands.create import command as create
from pileus.cli.fields import Field, fields_of
from pileus.cli.flags import RESERVED, Flag, desired_of, flags_of, given_flags
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

MADE_BY_USERS = [kind for kind in KINDS if kind.created_by == "user"]
WORDS = st.text("abcxyz0189.:/=+ é", min_size=1, max_size=12).map(str.strip).filter(bool)


def parse(kind: Kind, *arguments: str) -> dict[str, Any]:
    group = click.Context(create)
    command = create.get_command(group, kind.short)
    assert command is not None
    with command.make_context(kind.short, ["a-name", *arguments], parent=group):
        return desired_of(given_flags())


def parse_vm(*arguments: str) -> dict[str, Any]:
    return parse(KINDS["compute.vm"], *arguments)


def one_value(field: Field) -> st.SearchStrategy[Any]:
    if field.choices:
        return st.sampled_from(field.choices)
    if field.form == "integer":
        low, high = field.minimum, field.maximum
        return st.integers(int(low) if low is not None else -99, int(high) if high is not None else 10**9)
    if field.pattern:
        return st.from_regex(field.pattern, fullmatch=True)
    return WORDS.map(lambda drawn: drawn[: field.length_max].strip() or "x")


def value(field: Field) -> st.SearchStrategy[Any]:
    if field.struct is not None and field.many:
        # The first field of each element is there: it is what separates the elements.
        return st.lists(wish(field.struct, always=field.fields[0].name), min_size=1, max_size=3)
    if field.struct is not None:
        return wish(field.struct).filter(bool)
    if field.many:
        # A comma separates values on the command line, with blanks around it; one that has some is written in a document.
        one = one_value(field).filter(lambda drawn: "," not in str(drawn) and str(drawn) == str(drawn).strip())
        return st.lists(one, min_size=max(1, field.items_min or 0), max_size=3)
    return one_value(field)


def wish(struct: type[msgspec.Struct], always: str = "") -> st.SearchStrategy[dict[str, Any]]:
    # What JSON a field takes only its type knows: see the test of such flags.
    fields = {field.name: field for field in fields_of(struct) if field.form != "json"}
    needed = {name for name, field in fields.items() if field.required or name == always}
    return st.fixed_dictionaries(
        {name: value(fields[name]) for name in sorted(needed)},
        optional={name: value(field) for name, field in fields.items() if name not in needed},
    )


def arguments_of(kind: Kind, desired: dict[str, Any], folder: Path) -> list[str]:
    """Return the command line that says ``desired``."""
    flags = flags_of(kind)
    made: list[str] = []
    for flag in (flag for flag in flags if not flag.group):
        made += said(flag, at(desired, flag.path), folder)
    for group in dict.fromkeys(flag.group for flag in flags if flag.group):
        for element in at(desired, group) or ():
            for flag in (flag for flag in flags if flag.group == group):
                made += said(flag, at(element, flag.path), folder)
    return made


def said(flag: Flag, content: Any, folder: Path) -> list[str]:
    if content is None:
        return []
    if flag.field.file:
        file = folder / flag.word
        file.write_text(content)
        return [flag.name, str(file)]
    if flag.field.many and flag.first:
        return [flag.name, ",".join(content)]
    parts = content if flag.field.many else [content]
    return [word for part in parts for word in (flag.name, str(part))]


def at(root: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        root = root.get(name) if isinstance(root, dict) else None
    return root


@pytest.mark.parametrize("kind", MADE_BY_USERS, ids=lambda kind: kind.short)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_what_the_flags_say_is_what_the_type_takes(kind: Kind, tmp_path: Path, choice: st.DataObject) -> None:
    desired = choice.draw(wish(kind.desired))
    made = parse(kind, *arguments_of(kind, desired, tmp_path))
    assert made == desired
    assert msgspec.to_builtins(msgspec.convert(made, kind.desired)) == msgspec.to_builtins(
        msgspec.convert(desired, kind.desired)
    )


def test_a_flag_whose_field_has_any_shape_takes_json() -> None:
    document = '{"rules": {"web": {"port": 80}}}'
    made = parse(KINDS["fleet.node"], "--manager", "m", "--document", document)
    assert made == {"manager": "m", "document": {"rules": {"web": {"port": 80}}}}
    command = ("--name", "ban", "--path", "/usr/sbin/ban", "--values", '{"peer": "address"}', "--repeatable", "true")
    made = parse(KINDS["fleet.package"], "--manager", "m", "--version", "1", *command)
    assert made["guest_agent"]["commands"] == [
        {"name": "ban", "path": "/usr/sbin/ban", "values": {"peer": "address"}, "repeatable": True}
    ]


@pytest.mark.parametrize(
    ("written", "value"), [("failed", "failed"), ("3", 3), ('["a","b"]', ["a", "b"]), ("1.2.3", "1.2.3")]
)
def test_a_value_that_may_be_text_needs_no_quotes(written: str, value: object) -> None:
    clause = ("--field", "execution.state", "--value", written)
    made = parse(KINDS["monitor.policy"], "--monitor", "m", *clause, "--do", "ask")
    assert made["when"] == [{"field": "execution.state", "value": value}]


def test_a_list_that_must_have_something_is_asked_for() -> None:
    with pytest.raises(click.UsageError, match="--field is missing"):
        parse(KINDS["monitor.policy"], "--monitor", "m", "--do", "ask")


@pytest.mark.parametrize("kind", MADE_BY_USERS, ids=lambda kind: kind.short)
def test_no_two_flags_of_a_kind_have_the_same_word(kind: Kind) -> None:
    words = [flag.word for flag in flags_of(kind)]
    assert len(words) == len(set(words))
    assert not RESERVED & set(words)


@pytest.mark.parametrize("kind", MADE_BY_USERS, ids=lambda kind: kind.short)
def test_every_field_of_the_wish_has_a_flag_with_a_description(kind: Kind) -> None:
    flags = flags_of(kind)
    assert {(flag.group or flag.path)[0] for flag in flags} == {field.name for field in fields_of(kind.desired)}
    command = create.get_command(click.Context(create), kind.short)
    assert command is not None
    text = command.get_help(click.Context(command, info_name=kind.short))
    assert all(flag.name in text for flag in flags)


def test_each_first_flag_of_a_group_starts_an_element() -> None:
    assert parse_vm("--network", "a", "--address", "10.1.1.10", "--network", "b")["nics"] == [
        {"network": "a", "address": "10.1.1.10"},
        {"network": "b"},
    ]


def test_later_flags_of_a_group_alone_make_one_element() -> None:
    assert parse_vm("--address", "10.1.1.10", "--extra-addresses", "10.1.1.11,10.1.1.12")["nics"] == [
        {"address": "10.1.1.10", "extra_addresses": ["10.1.1.11", "10.1.1.12"]}
    ]


def test_the_first_flag_may_come_after_the_others_of_its_only_element() -> None:
    assert parse_vm("--address", "10.1.1.10", "--network", "other")["nics"] == [
        {"address": "10.1.1.10", "network": "other"}
    ]


def test_flags_of_two_groups_do_not_mix() -> None:
    made = parse_vm("--volume", "v1", "--network", "a", "--volume", "v2", "--address", "10.1.1.10")
    assert made == {
        "volumes": [{"volume": "v1"}, {"volume": "v2"}],
        "nics": [{"network": "a", "address": "10.1.1.10"}],
    }


def test_a_flag_that_holds_one_value_is_refused_twice() -> None:
    with pytest.raises(click.UsageError, match="--image is given twice"):
        parse_vm("--image", "a", "--image", "b")
    with pytest.raises(
        click.UsageError, match=r"--address is given twice; put .* before the flags of each further nic"
    ):
        parse_vm("--address", "10.1.1.10", "--address", "10.1.1.11")


def test_nested_structs_carry_their_name_in_the_flag() -> None:
    assert parse(KINDS["tenancy.vdc"], "--quota-vms", "5", "--quota-memory-mib", "1024") == {
        "quota": {"vms": 5, "memory_mib": 1024}
    }


def test_rules_of_a_role_are_elements_of_two_flags() -> None:
    made = parse(
        KINDS["tenancy.role"], "--kinds", "compute.*", "--verbs", "get,console", "--kinds", "*", "--verbs", "get"
    )
    assert made["rules"] == [
        {"kinds": ["compute.*"], "verbs": ["get", "console"]},
        {"kinds": ["*"], "verbs": ["get"]},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1GiB", "--memory-mib takes MiB as a whole number; for 1GiB say 1024"),
        ("1.5 GiB", "for 1.5 GiB say 1536"),
        ("2048k", "for 2048k say 2"),
        ("1000MB", "1000MB lies between 953 and 954"),
        ("lots", "--memory-mib takes MiB as a whole number, not 'lots'"),
        ("512.0", "--memory-mib takes MiB as a whole number, not '512.0'"),
        ("-1", "--memory-mib takes 0 to 4194304, not -1"),
        ("99999999", "--memory-mib takes 0 to 4194304, not 99999999"),
        ("", "--memory-mib takes MiB as a whole number, not ''"),
        ("٣", "--memory-mib takes MiB as a whole number, not '٣'"),
        ("9" * 4000, "--memory-mib takes MiB as a whole number"),
    ],
)
def test_a_number_with_a_unit_is_refused_with_the_number_to_say(text: str, message: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        parse_vm("--memory-mib", text)
    assert message in str(refused.value)


def test_a_time_with_a_unit_is_refused_with_the_seconds_to_say() -> None:
    with pytest.raises(click.UsageError, match="for 1m say 60"):
        parse_vm("--shutdown-timeout-s", "1m")


def test_a_value_that_is_none_of_the_choices_is_refused_with_the_closest() -> None:
    with pytest.raises(click.UsageError, match=r"--power takes one of .*; did you mean running\?"):
        parse_vm("--power", "runing")


def test_a_missing_flag_is_named_with_what_it_means() -> None:
    with pytest.raises(click.UsageError, match="--size-gib is missing: Size as the guest sees it"):
        parse(KINDS["storage.volume"])


def test_an_unknown_kind_is_answered_with_the_closest() -> None:
    with pytest.raises(click.UsageError, match='no kind "netwrok"; did you mean network'):
        create.get_command(click.Context(create), "netwrok")


def test_user_data_is_read_from_its_file(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\necho hello, world\n")
    assert parse_vm("--user-data", str(script)) == {"user_data": "#!/bin/sh\necho hello, world\n"}


def test_user_data_from_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"--user-data: cannot read .*nothing: No such file"):
        parse_vm("--user-data", str(tmp_path / "nothing"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(click.UsageError, match="is not text in UTF-8"):
        parse_vm("--user-data", str(tmp_path / "binary"))
    (tmp_path / "long").write_text("x" * 65_537)
    with pytest.raises(click.UsageError, match="at most 65536 characters, got 65537"):
        parse_vm("--user-data", str(tmp_path / "long"))


def test_ssh_keys_are_taken_as_text_from_a_path_and_from_an_at_sign(tmp_path: Path) -> None:
    keys = tmp_path / "keys.pub"
    keys.write_text("# mine\nssh-ed25519 AAAA a@b\n\nssh-ed25519 BBBB c@d\n")
    made = parse_vm("--ssh-key", "ssh-ed25519 CCCC e@f, work", "--ssh-key", str(keys), "--ssh-key", f"@{keys}")
    both = ["ssh-ed25519 AAAA a@b", "ssh-ed25519 BBBB c@d"]
    assert made["ssh_keys"] == ["ssh-ed25519 CCCC e@f, work", *both, *both]


def test_a_private_key_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "id"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    with pytest.raises(click.UsageError, match=r"holds a private key; give the public one"):
        parse_vm("--ssh-key", str(key))


def test_an_empty_value_empties_a_list() -> None:
    assert parse(KINDS["infra.zone"], "--dns", "") == {"dns": []}
    assert parse(KINDS["infra.zone"], "--dns", "10.0.0.1, 10.0.0.2") == {"dns": ["10.0.0.1", "10.0.0.2"]}
