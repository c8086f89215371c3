"""A fit is reproducible and leaves the process as it found it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from skjeffreys import JeffreysConditionalDensity, JeffreysDensity

SHORT = {"max_iter": 50}


def global_state():
    return {
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": [np.array(part).tolist() for part in np.random.get_state()[1:]],
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "pools of threads": [pool["num_threads"] for pool in threadpool_info()],
        "validation": torch.distributions.Distribution._validate_args,
        "gradients": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("random_state", [None, 0])
def test_fit_and_scoring_leave_global_state_alone(moons, random_state):
    before = global_state()
    density = JeffreysDensity(**SHORT, random_state=random_state).fit(moons)
    density.score_samples(moons)
    density.proxy_score_samples(moons)
    density.sample(3)
    assert global_state() == before


def test_import_leaves_the_validation_of_distributions_on():
    code = (
        "import torch, numpy as np; n = torch.get_num_threads(); s = torch.get_rng_state();"
        "r = np.random.get_state()[1].copy();"
        "import skjeffreys;"
        "assert torch.distributions.Distribution._validate_args;"
        "assert torch.get_default_dtype() == torch.float32;"
        "assert torch.get_num_threads() == n;"
        "assert (torch.get_rng_state() == s).all();"
        "assert (np.random.get_state()[1] == r).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_seed_same_fit_other_seed_another(moons):
    first, again, other = (
        JeffreysDensity(**SHORT, random_state=seed).fit(moons) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.score_samples(moons), again.score_samples(moons))
    assert first.normalizer_ == again.normalizer_
    assert first.history_.equals(again.history_)
    np.testing.assert_array_equal(first.sample(5), again.sample(5))
    assert not np.allclose(first.score_samples(moons), other.score_samples(moons))


def test_fits_in_one_process_and_in_two_are_the_same(moons):
    one, two = (
        JeffreysDensity(**SHORT, n_jobs=n_jobs, random_state=0).fit(moons) for n_jobs in (None, 2)
    )
    assert one.flow_weight_ < 0.99  # There are mixtures.
    np.testing.assert_array_equal(one.score_samples(moons), two.score_samples(moons))


def test_no_seed_differs_from_fit_to_fit(moons):
    np.random.seed(0)
    first = JeffreysDensity(**SHORT).fit(moons).score_samples(moons)
    np.random.seed(0)
    assert not np.allclose(first, JeffreysDensity(**SHORT).fit(moons).score_samples(moons))


def test_fit_does_not_depend_on_the_surrounding_settings(moons):
    expected = JeffreysDensity(**SHORT, random_state=0).fit(moons).score_samples(moons)
    X, y = moons[:, :1], moons[:, 1]
    conditional = JeffreysConditionalDensity(**SHORT, random_state=0)
    expected_mean = conditional.fit(X, y).predict(X)
    expected_samples = conditional.sample(X)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    validate = torch.distributions.Distribution._validate_args
    try:
        torch.manual_seed(99)
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.distributions.Distribution.set_default_validate_args(not validate)
        with torch.inference_mode():
            density = JeffreysDensity(**SHORT, random_state=0).fit(moons)
            np.testing.assert_allclose(density.score_samples(moons), expected, atol=1e-12)
            conditional.fit(X, y)
            # The number of threads moves the last digits, and where a spline is flat, with a slope
            # of 0.001 at least, its inverse makes a thousand times as much of these.
            np.testing.assert_allclose(conditional.predict(X), expected_mean, atol=1e-8)
            np.testing.assert_allclose(conditional.sample(X), expected_samples, atol=1e-8)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.distributions.Distribution.set_default_validate_args(validate)


def test_concurrent_fits_do_not_disturb_each_other(moons):
    def fit(seed):
        density = JeffreysDensity(**SHORT, random_state=seed).fit(moons)
        return density.score_samples(moons)

    threads = torch.get_num_threads()
    alone = [fit(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fit, range(4)))
    np.testing.assert_allclose(together, alone, atol=1e-12)
    assert torch.get_num_threads() == threads
