"""Rules of strangers: what is taken, what is refused and where it says so; and the rule that is always there."""

from __future__ import annotations

import asyncio

import pytest
from tools.code import ROOT

from pileus.scan import rules
from pileus.scan.checking import check
from pileus.scan.report import Finding, Report, printable
from pileus.scan.rules import RulesRefused, compile_rules, describe, eicar

TEST_FILE = "".join(rules._EICAR_PARTS).encode()

REFUSED: dict[str, tuple[str, str, int, str]] = {
    "nothing": ("", "Empty", 0, "no rule"),
    "no YARA": ("hello", "BadRule", 1, "syntax error"),
    "an unknown name": ("rule a {\n  condition:\n    foo\n}", "BadRule", 3, "foo"),
    "two of one name": ("rule a { condition: true }\nrule a { condition: true }", "BadRule", 2, "duplicate"),
    "another file": ('include "/etc/passwd"\nrule a { condition: true }', "BadRule", 1, "include"),
    "a module that is not there": ('import "magic" rule a { condition: true }', "BadRule", 1, "magic"),
    "a sandbox's report": ('\nimport "cuckoo" rule a { condition: true }', "ModuleRefused", 2, "cuckoo"),
    "the console": ('import "console" rule a { condition: console.log("x") }', "ModuleRefused", 1, "console"),
    "the clock": ('import "time" rule a { condition: time.now() > 5 }', "ModuleRefused", 1, "time"),
    "too many": ("".join(f"rule r{number}{{condition:true}}" for number in range(20_001)), "TooMany", 0, "20001"),
    "too much text": ("/*" + "x" * rules.RULES_BYTES_MAX + "*/ rule a { condition: true }", "TooLarge", 0, "bytes"),
    "half a character": ("rule a { condition: true } // \udc80", "NotText", 0, "UTF-8"),
    "a deep hole": ("rule a { condition: " + "(" * 100_000 + "true" + ")" * 100_000 + "}", "BadRule", 1, "nesting"),
    "a huge expression": (
        "rule a { strings: $a = /((((a{0,99}){0,99}){0,99}){0,99}){0,99}/ condition: $a }",
        "BadRule",
        1,
        "too large",
    ),
}
"""The rules, and the reason, the line and a word of the refusal."""


@pytest.mark.parametrize("case", REFUSED)
def test_rules_that_cannot_be_are_refused_with_reason_and_line(case: str) -> None:
    source, reason, line, word = REFUSED[case]
    with pytest.raises(RulesRefused) as refused:
        describe(source)
    assert (refused.value.reason, refused.value.line) == (reason, line)
    assert word in refused.value.message


def test_modules_that_see_only_the_scanned_bytes_are_taken() -> None:
    listed = describe(
        'import "elf" import "hash" rule b { condition: elf.type == elf.ET_EXEC } rule a { condition: true }'
    )
    assert listed.rules == ("a", "b")
    assert describe("rule a { strings: $a = /.*b/ condition: $a }").warnings == ("line 1: slow pattern",)


def test_the_test_file_of_eicar_is_found_wherever_it_lies() -> None:
    assert len(TEST_FILE) == 68
    found = compile_rules(eicar()).scan(b"before " + TEST_FILE + b" after").matching_rules
    assert [(rule.identifier, rule.patterns[0].matches[0].offset) for rule in found] == [("EICAR_Test_File", 7)]
    assert not compile_rules(eicar()).scan(TEST_FILE[:-1]).matching_rules


def test_no_file_of_the_project_is_taken_for_the_test_file() -> None:
    compiled = compile_rules(eicar())
    folders = [ROOT / name for name in ("src", "tests", "docs", "tools", "benchmarks")]
    flagged = [
        file
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and is_flagged(compiled, file.read_bytes())
    ]
    assert flagged == []


def is_flagged(compiled: object, content: bytes) -> bool:
    return bool(compiled.scan(content).matching_rules)  # type: ignore[attr-defined]


def test_rules_are_checked_in_a_process_of_their_own() -> None:
    assert asyncio.run(check(eicar())).rules == ("EICAR_Test_File",)
    with pytest.raises(RulesRefused) as refused:
        asyncio.run(check("rule a {\n condition: foo }"))
    assert (refused.value.reason, refused.value.line) == ("BadRule", 2)


def test_rules_that_explode_end_their_process_alone() -> None:
    strings = "\n".join(f'$a{number} = "abcdefgh{number}" xor wide ascii' for number in range(20_000))
    with pytest.raises(RulesRefused) as refused:
        asyncio.run(check(f"rule a {{ strings: {strings} condition: any of them }}", time_s=0.3))
    assert refused.value.reason == "TooCostly"


def test_a_report_is_clean_only_when_nothing_is_missing() -> None:
    found = Finding(rule="a", where="disk")
    assert Report().state == "clean"
    assert Report(reason="Crashed", message="it did").state == "unknown"
    assert Report(findings=(found,), reason="TimedOut", message="late").state == "found"


def test_names_of_a_stranger_are_made_harmless() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed\ud800") == "a\\x1b[2Jb\\nc\\u202ed\\ud800"
    assert len(printable("x" * 5000)) == 1024
