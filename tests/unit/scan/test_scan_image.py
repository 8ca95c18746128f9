"""The scanner as it goes into an image: only what the dynamic linker reads of it, and it still works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yara_x

from pileus.image.elf import loaded_part, needed_libraries


def test_the_scanner_works_without_what_is_only_for_debuggers(tmp_path: Path) -> None:
    installed = Path(yara_x.__file__).parent
    (tmp_path / "yara_x").mkdir()
    (tmp_path / "yara_x" / "__init__.py").write_bytes((installed / "__init__.py").read_bytes())
    (library,) = installed.glob("*.so")
    whole = library.read_bytes()
    kept = loaded_part(whole)
    (tmp_path / "yara_x" / library.name).write_bytes(kept)
    assert len(kept) < 0.8 * len(whole)
    assert needed_libraries(kept) == needed_libraries(whole)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import yara_x\n"
        'rules = yara_x.compile("rule a { strings: $a = /ab+c/ condition: $a }")\n'
        "print(yara_x.__file__, len(rules.scan(b'xabbbc').matching_rules))"
    )
    said = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(tmp_path / "yara_x" / "__init__.py"), "1"]
