"""The house rules that no linter knows, checked on the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.code import ROOT, SOURCE, files, tree

LINES_MAX = 500
FUNCTION_LINES_MAX = 50

TESTS = ROOT / "tests"
ALL = [*files(SOURCE), *files(TESTS), *files(ROOT / "tools"), *files(ROOT / "benchmarks")]

CATCH_ALL = {
    "kernel/background.py": "a defect must not end what the whole server rests on",
    "kernel/loop.py": "a defect of one kind must not stop the others",
    "kernel/store/engine.py": "handed to the caller, who knows what it means",
    "agent/converge.py": "a defect of one kind must not stop the others",
    "server/agents.py": "a defect of one kind must not end the conversation with a host",
    "server/edge.py": "whatever fails, the caller gets an answer",
}
"""Where everything may be caught, and why; anywhere else a catch of everything must raise again."""

BANNED = {"helper", "util", "utils", "handler", "data", "info", "process", "instance"}

ALLOWED_WORDS = {
    "data": "the data folder of a server",
    "data_option": "the data folder of a server",
    "default_data": "the data folder of a server",
    "data_received": "asyncio.Protocol's method",
    "user_data": "NoCloud's word",
    "_user_data": "NoCloud's word",
    "USER_DATA_BYTES_MAX": "NoCloud's word",
    "instance_id": "NoCloud's word",
    "_INSTANCE_ID": "NoCloud's word",
    "_external_data": "qcow2's word",
    "EXTERNAL_DATA": "qcow2's word",
    "DATA_FILE": "qcow2's word",
    "process": "a process of the operating system",
    "ProcessId": "a process of the operating system",
    "ProcessStat": "a process of the operating system",
}
"""Exact names with a banned word that are the field's own."""


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", ALL, ids=relative)
def test_no_file_and_no_function_is_too_long(file: Path) -> None:
    lines = file.read_text().count("\n")
    assert lines <= LINES_MAX, f"{relative(file)} has {lines} lines; split the decision from the action"
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.end_lineno is not None:
            length = part.end_lineno - part.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{relative(file)}: {part.name} has {length} lines"


def catches_everything(caught: ast.ExceptHandler) -> bool:
    names = {part.id for part in ast.walk(caught.type) if isinstance(part, ast.Name)} if caught.type else {"Exception"}
    raises = any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(caught))
    return bool(names & {"Exception", "BaseException"}) and not raises


def test_everything_is_caught_only_where_it_may_be() -> None:
    found = {
        str(file.relative_to(SOURCE))
        for file in files(SOURCE)
        for part in ast.walk(tree(file))
        if isinstance(part, ast.ExceptHandler) and catches_everything(part)
    }
    assert found - set(CATCH_ALL) == set()


def test_no_shell_is_started() -> None:
    for file in ALL:
        for part in ast.walk(tree(file)):
            if isinstance(part, ast.Call):
                shell = [word for word in part.keywords if word.arg == "shell"]
                assert all(isinstance(w.value, ast.Constant) and w.value.value is False for w in shell), relative(file)
                called = ast.unparse(part.func)
                assert called not in ("os.system", "os.popen", "asyncio.create_subprocess_shell"), relative(file)


def words(part: ast.expr) -> list[str] | None:
    """Return the constant strings of a command line, ``…`` for others; None for what is no list."""
    if not isinstance(part, ast.List | ast.Tuple):
        return None
    return [str(item.value) if isinstance(item, ast.Constant) else "…" for item in part.elts]


QEMU_IMG = {"check", "convert", "create", "info", "map", "measure", "resize", "compare", "rebase", "commit", "snapshot"}


def disk_commands() -> Iterator[tuple[Path, list[str]]]:
    """Yield every list or argument list that is a qemu-img command: ``["qemu-img", "info", …]``, ``("info", …)``."""
    for file in files(SOURCE):
        if "qemu-img" not in file.read_text():
            continue
        for part in ast.walk(tree(file)):
            if isinstance(part, ast.Call):
                listed = [found for argument in part.args if (found := words(argument)) is not None]
                flat = [str(arg.value) if isinstance(arg, ast.Constant) else "…" for arg in part.args]
                for line in [*listed, flat]:
                    arguments = line[1:] if line[:1] == ["qemu-img"] else line
                    if arguments[:1] and arguments[0] in QEMU_IMG and len(arguments) > 2:
                        yield file, arguments
            elif isinstance(part, ast.List):
                command = words(part) or []
                if command[:1] == ["qemu-img"]:
                    yield file, command[1:]


def test_every_disk_command_names_its_format() -> None:
    lines = list(disk_commands())
    assert len(lines) >= 4, "the gate finds no qemu-img command any more; mend the gate"
    for file, line in lines:
        assert "-f" in line or "--image-opts" in line, f"{relative(file)}: qemu-img {' '.join(line)}"


def named(part: ast.AST) -> str | None:
    """Return the name that a definition, argument or assignment introduces."""
    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return part.name
    if isinstance(part, ast.arg):
        return part.arg
    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
        return part.id
    return None


def is_banned(name: str) -> bool:
    parts = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    return bool(parts & BANNED) and name not in ALLOWED_WORDS


def test_no_name_is_one_of_the_words_that_say_nothing() -> None:
    found = [
        f"{relative(file)}:{getattr(part, 'lineno', 0)}: {name}"
        for file in files(SOURCE)
        for part in ast.walk(tree(file))
        if (name := named(part)) is not None and is_banned(name)
    ]
    found += [relative(file) for file in files(SOURCE) if is_banned(file.stem)]
    assert found == [], "say what the thing is; see DEVELOPMENT.md"


def test_a_name_that_says_nothing_is_found() -> None:
    assert is_banned("VmHelper")
    assert is_banned("process_request")
    assert not is_banned("user_data")


def test_nothing_in_the_project_names_a_developers_machine() -> None:
    # The folders are spelled in two parts, so that this file does not name them.
    places = ["/wo" + "rk/", "/home/" + "[a-z]+/"]
    pattern = re.compile(rf"(?<![\w.$}}{{-])({'|'.join(places)})")
    texts = [*ALL, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "tools" / "setup"]
    for file in texts:
        found = pattern.search(file.read_text())
        assert found is None, f"{relative(file)} names {found and found[0]}"


def test_the_makefile_is_short_and_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    assert text.count("\n") <= 60
    targets = re.findall(r"^([a-z-]+):(.*)$", text, re.MULTILINE)
    assert {name for name, _ in targets} >= set(
        ["setup", "demo", "dev", "check", "fmt", "test", "test-contract", "test-vm", "bench", "docs", "kind"]
    )
    assert all("##" in rest for _, rest in targets)
