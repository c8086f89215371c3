import numpy as np
import pytest
import torch

from skjeffreys._ensemble import ambiguity_at_samples, mixture_log_density


def test_ambiguity_is_that_on_new_rows_of_what_the_members_resemble():
    """Members, and the data, are normal densities with means that are drawn alike."""
    generator, estimates, leads = torch.Generator().manual_seed(0), [], []
    for _ in range(1000):
        means = torch.randn(6, 1, 1, generator=generator, dtype=torch.float64)
        rows = means + torch.randn(6, 1, 10, generator=generator, dtype=torch.float64)
        log_p = -((rows.transpose(0, 1) - means) ** 2) / 2
        estimates.append(float(ambiguity_at_samples(log_p[:5, :5])))
        on_data = log_p[:4, 5]
        leads.append(float((mixture_log_density(on_data) - on_data.mean(dim=0)).mean()))
    np.testing.assert_allclose(np.mean(estimates), np.mean(leads), rtol=0.05)


@pytest.mark.parametrize("n_members", [1, 2, 3])
def test_members_that_agree_have_no_ambiguity(n_members):
    log_p = torch.randn(1, n_members, 20, dtype=torch.float64).expand(n_members, -1, -1)
    assert abs(float(ambiguity_at_samples(log_p))) < 1e-12
