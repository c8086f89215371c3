"""What the studies share: options, tuned peers, running fits side by side, saving results."""

__all__ = ["PEERS", "parse_options", "run_all", "run_missing", "save"]

import argparse
import sys
from itertools import chain
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

# The peers are those of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from peers import PEERS
from resume import run_missing


def parse_options(description, add_arguments=None):
    """Parse ``--quick``, ``--output`` and what ``add_arguments(parser)`` adds."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--output", type=Path, default=Path("paper"), help="folder for the CSV and the figure"
    )
    if add_arguments is not None:
        add_arguments(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def run_all(function, jobs):
    """Call ``function(*job)`` for each job, side by side; it returns a list of rows (dicts)."""
    results = Parallel(n_jobs=2, return_as="generator")(delayed(function)(*j) for j in jobs)
    return pd.DataFrame(chain.from_iterable(tqdm(results, total=len(jobs), unit="fit")))


def save(results, figure, output, name):
    """Write ``name.csv`` and ``name.png``."""
    results.to_csv(output / f"{name}.csv", index=False)
    figure.savefig(output / f"{name}.png", dpi=100)
    print(f"Saved {output / name}.csv and .png")
