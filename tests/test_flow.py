import pytest
import torch

from skjeffreys._flow import coupling_flow, sample_flow, standard_normal

FEATURES = [1, 2, 3, 7]


def random_flow(n_features, seed=0):
    torch.manual_seed(seed)
    flow = coupling_flow(n_features, hidden_layer_sizes=(16,), n_transforms=3, n_bins=5)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flow.double().requires_grad_(False)


@pytest.mark.parametrize("n_features", FEATURES)
def test_starts_as_the_standard_normal_density(n_features):
    flow = coupling_flow(n_features, hidden_layer_sizes=(16,), n_transforms=3, n_bins=5)
    x = 3 * torch.randn(50, n_features)
    torch.testing.assert_close(flow().log_prob(x), standard_normal(n_features)().log_prob(x))


@pytest.mark.parametrize("n_features", FEATURES)
def test_samples_are_the_inverse_of_the_transform(n_features):
    flow = random_flow(n_features)
    noise = 2 * torch.randn(50, n_features, dtype=torch.float64)
    torch.testing.assert_close(flow().transform(sample_flow(flow, noise)), noise)


@pytest.mark.parametrize("n_features", FEATURES)
def test_log_density_carries_the_jacobian(n_features):
    flow = random_flow(n_features)
    for x in 2 * torch.randn(5, n_features, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow().transform(x), x)
        base = standard_normal(n_features).double()().log_prob(flow().transform(x))
        torch.testing.assert_close(flow().log_prob(x), base + torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("n_features", [2, 3, 7])
def test_two_couplings_transform_every_feature(n_features):
    flow = coupling_flow(n_features, hidden_layer_sizes=(16,), n_transforms=2, n_bins=5)
    masks = torch.stack([t.mask for t in flow.transform.transforms])
    assert (masks.sum(dim=0) == 1).all()


def test_standard_normal_samples_are_the_noise():
    noise = torch.randn(10, 3)
    torch.testing.assert_close(sample_flow(standard_normal(3), noise), noise)
