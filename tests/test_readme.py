"""The README's code runs as it stands and prints what its comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readmes_pipeline_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(code)
    output = subprocess.check_output([sys.executable, script], text=True, timeout=60)
    p99, counts, total, *squares = output.splitlines()
    assert float(p99) >= 0
    assert counts == "3 2"
    assert total == str(sum(100 * n for n in range(1000)))
    assert squares == ["0", "1", "4", "9", "16"]


def test_the_readmes_two_commands_exist_and_can_be_run() -> None:
    for command in ("scripts/demo", "scripts/test"):
        assert command in (ROOT / "README.md").read_text()
        assert (ROOT / command).stat().st_mode & 0o111
