"""Use an installed plugin as a newcomer: the README's quick start must fail, and be mended.

Run by the Python of an environment that holds nothing but the built wheel and what it needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
EXPECTED = {"test_finetune.py": 1, "test_mended.py": 0}
HEADLINE = "1 of 1 frozen BN layer changed: backbone.1"


def blocks(text: str) -> dict[str, str]:
    """Return a page's python blocks by the file name in their first line."""
    return dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for name, code in blocks(README.read_text()).items():
            (Path(folder) / name).write_text(code)
        for name, expected in EXPECTED.items():
            command = [sys.executable, "-m", "pytest", "-q", name]
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            said = HEADLINE in run.stdout
            if run.returncode != expected or said != bool(expected):
                print(run.stdout, run.stderr)
                print(f"{name}: exit status {run.returncode}, expected {expected}")
                return 1
    print(f"smoke test: {len(EXPECTED)} files as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
