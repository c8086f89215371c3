import math

import numpy as np
import pytest
import torch

from skjeffreys._energy import EnsembleReference, FixedReference, Proxy, Tilt
from skjeffreys._mixtures import Mixtures, standard_normal
from skjeffreys._normalizer import importance_estimate, measure_normalizer
from skjeffreys._rows import Rows


def test_equal_weights():
    estimate = importance_estimate(torch.full((50,), math.log(3.0)))
    assert estimate.value == pytest.approx(3)
    assert estimate.std_error == pytest.approx(0, abs=1e-12)
    assert estimate.ess == pytest.approx(1)


def test_one_weight_carries_all():
    log_weights = torch.full((500,), -1000.0)
    log_weights[7] = 0.0
    estimate = importance_estimate(log_weights)
    assert estimate.value == pytest.approx(1 / 500)
    assert estimate.ess == pytest.approx(1 / 500)
    assert not estimate.is_known


def test_agrees_with_plain_formulas():
    weights = np.random.RandomState(0).gamma(2.0, size=400)
    estimate = importance_estimate(torch.from_numpy(np.log(weights)))
    assert estimate.value == pytest.approx(weights.mean())
    assert estimate.std_error == pytest.approx(weights.std(ddof=1) / 20)
    assert estimate.ess == pytest.approx(weights.sum() ** 2 / (400 * (weights**2).sum()))


@pytest.mark.parametrize("log_weight, value", [(2000.0, math.inf), (-2000.0, 0.0)])
def test_weights_out_of_range_are_not_known(log_weight, value):
    estimate = importance_estimate(torch.full((1000,), log_weight))
    assert estimate.ess == pytest.approx(1)
    assert estimate.value == value
    assert not estimate.is_known


#: Without conditions it does not matter which.
ANY_ROWS = Rows(torch.zeros(5, 1), torch.full((5,), 0.2))


def normal_members(n_members=1):
    return Mixtures([standard_normal(1)] * n_members)


class Shifted(torch.nn.Module):
    """A standard normal proxy, moved by ``shift`` and scaled to integrate to ``mass``."""

    def __init__(self, shift, mass):
        super().__init__()
        self.normal = normal_members()
        self.reference = FixedReference(self.normal)
        self.shift, self.mass = shift, mass

    def log_weights(self, y, flow):
        tilt = self.normal.log_prob(y - self.shift) - self.normal.log_prob(y)
        return self.reference.log_ratio(y, flow) + tilt[0] + math.log(self.mass)


def test_error_bar_covers_the_known_mass():
    flow = normal_members(2)
    z_scores = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        measured = measure_normalizer(Shifted(0.7, 2.0), flow, ANY_ROWS, 2000, generator)
        z_scores.append((measured.value - 2.0) / measured.std_error)
    assert np.mean(np.abs(z_scores) < 2) >= 0.85
    assert abs(np.mean(z_scores)) < 0.6


def test_mass_that_the_flow_misses_is_found_in_the_reference():
    narrow = standard_normal(1)._replace(factors=np.full((1, 1, 1), 1 / 0.3))
    flow = Mixtures([narrow])
    generator = torch.Generator().manual_seed(0)
    measured = measure_normalizer(Shifted(0.0, 1.0), flow, ANY_ROWS, 5000, generator)
    assert measured.value == pytest.approx(1, abs=0.05)


def test_normalizer_of_a_tilted_ensemble():
    torch.manual_seed(0)
    proxy = Proxy(EnsembleReference(), Tilt(1, (8,), 1.8)).double()
    for parameter in proxy.tilt.parameters():
        torch.nn.init.normal_(parameter)
    flow = normal_members(3)
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    exact = proxy.log_density(grid, flow.log_prob(grid)).exp().sum().item() * 16 / 20_000
    measured = measure_normalizer(proxy, flow, ANY_ROWS, 20_000, torch.Generator().manual_seed(0))
    assert measured.value == pytest.approx(exact, abs=4 * measured.std_error)
    assert measured.ess >= 1 / math.cosh(1.8) ** 2


@pytest.mark.parametrize("reference", [EnsembleReference(), FixedReference(normal_members())])
def test_constant_of_the_energy_scales_the_normalizer(reference):
    proxy = Proxy(reference, Tilt(1, (8,), 1.8)).double()
    proxy.add_constant(math.log(0.4))
    flow = normal_members(3)
    measured = measure_normalizer(proxy, flow, ANY_ROWS, 100, torch.Generator().manual_seed(0))
    assert measured.value == pytest.approx(0.4)
    assert measured.ess == pytest.approx(1)
