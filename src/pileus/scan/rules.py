"""Compiles YARA rules, which tenants may bring, within limits; and the rule that is always there.

Rules are text of a stranger: nothing is included from files, no module is taken that looks at anything but the bytes
that are scanned, and there are limits on how much there may be. A set that takes too long or too much memory is for the
caller to stop (``checking``, ``disk``): compiling is done in a process that may end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yara_x
from msgspec import Struct

from pileus.scan.report import printable

RULES_BYTES_MAX = 4 * 1024**2
RULES_MAX = 20_000

MODULES = frozenset({"crx", "dex", "dotnet", "elf", "hash", "lnk", "macho", "math", "pe", "string"})
"""Modules that see nothing but the bytes that are scanned; ``time`` would make one scan differ from the next."""

LINE_BYTES_MAX = 64 * 1024

_IMPORT = re.compile(r'^\s*import\s+"([^"\n]*)"', re.MULTILINE)


class RulesRefused(Exception):
    """A set of rules that is not taken. ``line``: where, from 1; 0: nowhere in particular."""

    def __init__(self, reason: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.line = line


class Listed(Struct, frozen=True, kw_only=True):
    """What a set of rules is: the names of its rules, sorted, and what the compiler warns of, such as slow patterns."""

    rules: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def eicar() -> str:
    """Return the rule that finds the test file of EICAR, wherever in a file it lies.

    Its pattern is put together here, so that no scanner takes this file, or an image that has it, for the test file.
    Source: eicar.org, "Anti Malware Testfile", 68 bytes.
    """
    text = "".join(_EICAR_PARTS).replace("\\", "\\\\")
    return (
        "rule EICAR_Test_File {\n"
        '  meta:\n    description = "The test file that scanners agree on; it is harmless"\n'
        f'  strings:\n    $text = "{text}"\n  condition:\n    $text\n}}\n'
    )


_EICAR_PARTS = ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$", "EICAR-STANDARD-", "ANTIVIRUS-TEST", "-FILE!$H+H*")


def compile_rules(source: str) -> yara_x.Rules:
    """Return the compiled rules.

    Raises: RulesRefused (TooLarge, TooMany, Empty, NotText, ModuleRefused, and BadRule with the compiler's words).
    """
    return _compile(source)[0]


def describe(source: str) -> Listed:
    """Return what the rules are. Raises: RulesRefused."""
    rules, warnings = _compile(source)
    return Listed(rules=tuple(sorted(rule.identifier for rule in rules)), warnings=warnings)


def _compile(source: str) -> tuple[yara_x.Rules, tuple[str, ...]]:
    _check_text(source)
    compiler = yara_x.Compiler(includes_enabled=False)
    compiler.max_warnings(20)
    try:
        compiler.add_source(source)
    except yara_x.CompileError as exc:
        raise _refused(compiler.errors(), str(exc)) from None
    warnings = tuple(
        f"line {one.get('line', 0)}: {printable(str(one.get('title', '')))}" for one in compiler.warnings()
    )
    rules = compiler.build()
    _check_modules(source, rules.imports())
    count = sum(1 for _ in rules)
    if count > RULES_MAX:
        raise RulesRefused("TooMany", f"the set has {count} rules, {RULES_MAX} are allowed; split it")
    if count == 0:
        raise RulesRefused("Empty", "the set has no rule; nothing would be looked for")
    return rules, warnings


def _check_text(source: str) -> None:
    """Raises: RulesRefused (TooLarge, NotText)."""
    size = len(source.encode(errors="replace"))
    if size > RULES_BYTES_MAX:
        raise RulesRefused("TooLarge", f"the rules have {size} bytes, {RULES_BYTES_MAX} are allowed; split the set")
    if "\0" in source or (not source.isascii() and any(0xD800 <= ord(mark) < 0xE000 for mark in source)):
        raise RulesRefused("NotText", "the rules are not UTF-8 text")


def _check_modules(source: str, imported: Sequence[str]) -> None:
    """Raises: RulesRefused (ModuleRefused)."""
    for name in imported:
        if name not in MODULES:
            found = next((match for match in _IMPORT.finditer(source) if match[1] == name), None)
            line = source.count("\n", 0, found.start(1)) + 1 if found else 0
            allowed = ", ".join(sorted(MODULES))
            message = f"the module {name} sees more than the scanned bytes; modules that may be imported: {allowed}"
            raise RulesRefused("ModuleRefused", message, line)


def _refused(errors: object, words: str) -> RulesRefused:
    """Return the compiler's first error with its line."""
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    title = printable(str(first.get("title") or words.partition("\n")[0]))
    labels = first.get("labels") or [{}]
    label = printable(str(labels[0].get("text", ""))) if isinstance(labels[0], dict) else ""
    line = first.get("line", 0)
    return RulesRefused("BadRule", title + (f": {label}" if label else ""), line if isinstance(line, int) else 0)
