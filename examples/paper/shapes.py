"""Eight shapes in the plane, from few rows: the best and the last iterate, and maps.

For each shape (arXiv:2511.11159, Figure 4): the negative log-likelihood of fresh rows at the
iterate that is best on held-out rows, and at the last, of a single flow with the proxy and the
price of the paper and by maximum likelihood, and of the default ensemble and the same by maximum
likelihood. Maps of rows, flow and quasi-normalised proxy are drawn for the last iterate.
"""

import matplotlib.pyplot as plt
import numpy as np
from known_densities import eight_gaussians, funnel
from sklearn.datasets import make_circles, make_moons, make_swiss_roll
from study import parse_options, run_all, save
from traced import PaperDensity, TracedDensity

METHODS = {
    "Jeffreys, one flow": (PaperDensity, {}),
    "likelihood, one flow": (TracedDensity, {"objective": "likelihood", "n_estimators": 1}),
    "Jeffreys, default": (TracedDensity, {}),
    "likelihood, default": (TracedDensity, {"objective": "likelihood"}),
}
TEST_ROWS = 5000
GRID = 120


def pinwheel(n, random_state):
    """Five arms, bent the more the further out."""
    radius = 1 + 0.3 * random_state.standard_normal(n)
    angle = 2 * np.pi * random_state.randint(5, size=n) / 5 + 0.25 * np.exp(radius)
    across = 0.1 * random_state.standard_normal(n)
    return np.c_[
        radius * np.cos(angle) - across * np.sin(angle),
        radius * np.sin(angle) + across * np.cos(angle),
    ]


def checkerboard(n, random_state):
    """Half of the fields of a board of four by four."""
    column = random_state.randint(4, size=n)
    row = 2 * random_state.randint(2, size=n) + column % 2
    return np.c_[column, row] + random_state.uniform(size=(n, 2))


def two_spirals(n, random_state):
    """Two arms that wind once and a half around each other."""
    angle = 3 * np.pi * np.sqrt(random_state.uniform(size=n))
    arm = random_state.choice([-1, 1], size=n)
    rows = (arm * angle)[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    return rows / 3 + 0.1 * random_state.standard_normal((n, 2))


SHAPES = {
    "moons": lambda n, rng: make_moons(n, noise=0.1, random_state=rng)[0],
    "circles": lambda n, rng: make_circles(n, noise=0.05, factor=0.5, random_state=rng)[0],
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "eight Gaussians": eight_gaussians().sample,
    "two spirals": two_spirals,
    "swiss roll": lambda n, rng: make_swiss_roll(n, noise=0.5, random_state=rng)[0][:, ::2] / 5,
    "funnel": funnel(2).sample,
}


def run(shape, method, seed, n_rows, max_iter):
    """Train; return both likelihoods and, for the first seed, the maps of the last iterate."""
    rng = np.random.RandomState(seed)
    rows, test = SHAPES[shape](n_rows, rng), SHAPES[shape](TEST_ROWS, rng)
    estimator, parameters = METHODS[method]
    density = estimator(max_iter=max_iter, random_state=seed, **parameters).fit(rows)
    scores = {iteration: density.score(test) for iteration in density.iterates(every=4)}
    history = density.history_.set_index("iteration")["validation_log_likelihood"]
    best = history.loc[list(scores)].idxmax()
    maps = {}
    if seed == 0:
        points = np.stack(np.meshgrid(*sides(test)), axis=-1).reshape(-1, 2)
        maps["flow"] = density.score_samples(points)
        if density.objective != "likelihood":
            maps["proxy"] = density.proxy_score_samples(points)
    return [
        {
            "shape": shape,
            "method": method,
            "seed": seed,
            "best": -scores[best],
            "last": -density.score(test),
            "maps": maps,
        }
    ]


def sides(rows):
    """Return the sides of a box around all but the outermost rows, with some margin."""
    low, high = np.quantile(rows, [0.002, 0.998], axis=0)
    margin = 0.15 * (high - low)
    return np.linspace(low - margin, high + margin, GRID).T


def report(results):
    """Print means and standard errors over the seeds, and paired differences."""
    cells = results.groupby(["shape", "method"], sort=False)[["best", "last"]]
    table = cells.mean().join(cells.sem().add_suffix(" +-"))
    print(table.sort_index(axis=1).round(3).to_string())
    for kind in ("one flow", "default"):
        for column in ("best", "last"):
            scores = results.pivot(index=["shape", "seed"], columns="method", values=column)
            ours = f"Jeffreys, {kind}"
            lead = scores[f"likelihood, {kind}"] - scores[ours]
            ahead = (lead.groupby("shape").mean() > 0).sum()
            print(
                f"{ours} ahead of likelihood, {column} iterate: {ahead} of "
                f"{results['shape'].nunique()} shapes, by {lead.mean():.3f} +- {lead.sem():.3f}"
            )


def plot(results, n_rows):
    """Draw rows, flow and proxy of each shape, one column a shape."""
    shapes = results["shape"].unique()
    panels = [
        (method, model)
        for method in METHODS
        for model in ("flow", "proxy")
        if model == "flow" or method.startswith("Jeffreys")
    ]
    figure, axes = plt.subplots(
        1 + len(panels), len(shapes), figsize=(2 * len(shapes), 2 * (1 + len(panels))),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for column, shape in zip(axes.T, shapes, strict=True):
        rng = np.random.RandomState(0)
        rows, test = SHAPES[shape](n_rows, rng), SHAPES[shape](TEST_ROWS, rng)
        x, y = sides(test)
        column[0].plot(*rows.T, ".k", markersize=2)
        column[0].set(title=shape, xlim=x[[0, -1]], ylim=y[[0, -1]])
        for axis, (method, model) in zip(column[1:], panels, strict=True):
            chosen = results.query("shape == @shape and method == @method and seed == 0")
            values = np.exp(chosen["maps"].iloc[0][model]).reshape(GRID, GRID)
            # The square root shows the mass between the modes.
            axis.pcolormesh(x, y, np.sqrt(values), rasterized=True)
            if shape == shapes[0]:
                axis.set_ylabel(f"{method}:\n{model}", fontsize=7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def main():
    options = parse_options(__doc__)
    n_rows, max_iter, n_seeds = (200, 50, 1) if options.quick else (200, 1000, 5)
    shapes = list(SHAPES)[:2] if options.quick else list(SHAPES)
    jobs = [
        (shape, method, seed, n_rows, max_iter)
        for seed in range(n_seeds)
        for shape in shapes
        for method in METHODS
    ]
    results = run_all(run, jobs)
    report(results)
    figure = plot(results, n_rows)
    save(results.drop(columns="maps"), figure, options.output, "shapes")


if __name__ == "__main__":
    main()
