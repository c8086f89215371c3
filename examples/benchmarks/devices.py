"""Seconds to fit, and rows scored a second, on the CPU and on an accelerator.

Of each table ``X`` in an ``.npz`` file of the folder ``--data``: rows to train on, 2,000 to test
on, and more to score, drawn from these with replacement. Everything is done twice, and the second
time counts: the first pays for what torch loads. The two fits have one seed.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from density import split_table

from skjeffreys import JeffreysDensity


def run(path, n_train, device, n_scored):
    """Fit and score on one device; return a row of the table."""
    training, test = split_table(path, n_train, split=0)
    rows = test[np.random.default_rng(0).integers(len(test), size=n_scored)]
    density = JeffreysDensity(device=device, random_state=0)
    seconds, scores = [], []
    for _ in range(2):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            density.fit(training)
        fitted = time.perf_counter()
        density.score_samples(rows)
        seconds = [fitted - start, time.perf_counter() - fitted]
        scores.append(density.score_samples(test))
    return {
        "table": path.stem,
        "rows": len(training),
        "device": device,
        "fit": seconds[0],
        "steps": density.n_iter_,
        "rows a second": n_scored / seconds[1],
        "score": float(scores[0].mean()),
        "largest difference of two fits": float(np.abs(scores[1] - scores[0]).max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz tables")
    parser.add_argument("--n-train", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--scored", type=int, default=100_000)
    options = parser.parse_args()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    for n_train in options.n_train:
        for name in options.sets:
            for device in devices:
                row = run(options.data / f"{name}.npz", n_train, device, options.scored)
                print(row, flush=True)


if __name__ == "__main__":
    main()
