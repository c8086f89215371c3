import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart(tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLES / "quickstart.py", "--output", picture]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("JeffreysDensity", "KernelDensity", "GaussianMixture", "Normaliser", "lambda_1"):
        assert name in result.stdout
    assert "%" in result.stderr  # the progress bar
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    "name, arguments, printed",
    [
        ("posterior", ["--simulations", "300"], ["height", "intervals that hold", "nats"]),
        ("intervals", ["--folds", "2"], ["coverage", "50%", "ahead of a ridge regression"]),
    ],
)
def test_tutorials(tmp_path, name, arguments, printed):
    picture = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLES / f"{name}.py", "--output", picture, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for text in printed:
        assert text in result.stdout
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("study", ["weights", "stability", "shapes", "directions", "images"])
def test_studies_of_the_paper(tmp_path, study):
    command = [sys.executable, EXAMPLES / "paper" / f"{study}.py", "--quick", "--output", tmp_path]
    subprocess.run(command, capture_output=True, check=True)
    assert len((tmp_path / f"{study}.csv").read_text().splitlines()) > 3
    assert (tmp_path / f"{study}.png").stat().st_size > 10_000


def test_benchmark_compares_and_resumes(tmp_path):
    np.savez(tmp_path / "iris.npz", X=load_iris().data[:, :2])
    output = tmp_path / "output"
    command = [sys.executable, EXAMPLES / "benchmarks" / "density.py", "--data", tmp_path]
    command += ["--output", output, "--n-train", "40", "--splits", "2", "--methods"]
    command += ["Gaussian", "JeffreysDensity", "likelihood"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)
    )
    for text in ("Ahead of best peer in", "Ahead of likelihood in", "a single flow", "Normaliser"):
        assert text in first.stdout
    assert first.stdout == second.stdout
    assert len((output / "density.csv").read_text().splitlines()) == 1 + 2 * 3
    assert (output / "density.png").stat().st_size > 10_000


def test_benchmark_of_devices(tmp_path):
    np.savez(tmp_path / "iris.npz", X=load_iris().data[:, :2])
    command = [sys.executable, EXAMPLES / "benchmarks" / "devices.py", "--data", tmp_path]
    command += ["--sets", "iris", "--n-train", "40", "--scored", "100"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'device': 'cpu'" in result.stdout
    assert "'largest difference of two fits': 0.0" in result.stdout
