"""Running many fits, one row of a CSV each, and going on where the last run stopped."""

import csv

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm


def run_missing(function, jobs, file, columns, n_keys, n_jobs, *arguments):
    """Call ``function(*job, *arguments)`` for jobs whose row is not in ``file`` yet.

    Parameters
    ----------
    function : callable
        Returns the values of a row, the first ``n_keys`` of which name the job.
    jobs : dict
        From the first ``n_keys`` values of a row to the job.
    file : Path
        CSV that rows are appended to as they come.
    columns : list of str
        Its header.

    Returns
    -------
    results : DataFrame
        All rows of the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(",".join(columns) + "\n")
    done = set(pd.read_csv(file)[columns[:n_keys]].itertuples(index=False, name=None))
    missing = [job for key, job in jobs.items() if key not in done]
    rows = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(function)(*job, *arguments) for job in missing
    )
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        for row in tqdm(rows, total=len(missing), unit="fit"):
            writer.writerow(row)
            stream.flush()
    return pd.read_csv(file)
