"""Each benchmark runs, at its smallest size, and ends with one JSON object of numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import benchmarks

FILES = Path(benchmarks.__path__[0]).glob("*.py")
NAMES = sorted(path.stem for path in FILES if "arguments(__doc__" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_at_its_smallest_size(name: str) -> None:
    if name == "vs_trl":
        pytest.importorskip("trl", reason='TRL is installed by pip install -e ".[bench]"')
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])
