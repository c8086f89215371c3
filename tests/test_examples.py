import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


def test_quickstart(tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, QUICKSTART, "--output", picture]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("JeffreysDensity", "KernelDensity", "GaussianMixture", "Normaliser", "lambda_1"):
        assert name in result.stdout
    assert "%" in result.stderr  # the progress bar
    assert picture.stat().st_size > 10_000
