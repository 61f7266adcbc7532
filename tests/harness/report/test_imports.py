"""A report is made of records alone: it needs neither torch nor what measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REPORT = """
import sys
from pathlib import Path
from rich.console import Console
from harness.report.study_report import report_study
from harness.study.store import Store

folder = Path(sys.argv[1])
print(len(report_study(Store(folder), Console(quiet=True))), *{"torch", "transformers", "scipy", "pandas"} & set(sys.modules))
print(*sorted(folder.parent.rglob("*.png")))
"""


def test_a_report_loads_no_torch_and_writes_into_its_study_alone(tmp_path: Path) -> None:
    (tmp_path / "bundled_short").mkdir()
    (tmp_path / "bundled_short" / "records").symlink_to(ROOT / "results" / "bundled_short" / "records")
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{REPORT}",
        str(tmp_path / "bundled_short"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2", str(tmp_path / "bundled_short" / "tasks.png")]
    assert [path.name for path in tmp_path.iterdir()] == ["bundled_short"], "no cache beside the studies"
