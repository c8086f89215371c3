import pytest
import torch

from skjeffreys._flow import CouplingFlows
from skjeffreys._mixtures import Mixtures, standard_normal
from skjeffreys._regression import LinearRegressions, no_regressions

FEATURES = [1, 2, 3, 7]
N_MEMBERS = 3


def new_flow(n_features, n_transforms=3):
    base = Mixtures([standard_normal(n_features)] * N_MEMBERS).float()
    return CouplingFlows(
        base,
        regressions=no_regressions(N_MEMBERS, 0, n_features),
        hidden_layer_sizes=(16,),
        n_transforms=n_transforms,
        n_bins=5,
    )


def random_flow(n_features, **options):
    torch.manual_seed(0)
    flow = new_flow(n_features, **options)
    torch.nn.init.normal_(flow.weights, std=0.5)
    return flow.double().requires_grad_(False)


@pytest.mark.parametrize("n_features", FEATURES)
def test_starts_as_the_base_density(n_features):
    flow = new_flow(n_features)
    x = 3 * torch.randn(N_MEMBERS, 50, n_features)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))


@pytest.mark.parametrize("n_transforms", [1, 3])
@pytest.mark.parametrize("n_features", FEATURES)
def test_inverse_transform(n_features, n_transforms):
    flow = random_flow(n_features, n_transforms=n_transforms)
    z = 2 * torch.randn(N_MEMBERS, 50, n_features, dtype=torch.float64)
    torch.testing.assert_close(flow.transform(flow.transform.inv(z)), z)


@pytest.mark.parametrize("n_features", FEATURES)
def test_log_density_carries_the_jacobian(n_features):
    flow = random_flow(n_features)
    for x in 2 * torch.randn(5, N_MEMBERS, 1, n_features, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(flow.transform, x)
        own = torch.stack([jacobian[k, 0, :, k, 0] for k in range(N_MEMBERS)])
        expected = flow.base.log_prob(flow.transform(x))[:, 0] + torch.linalg.slogdet(own)[1]
        torch.testing.assert_close(flow.log_prob(x)[:, 0], expected)


def test_members_are_flows_of_their_own():
    flow, x = random_flow(3), torch.randn(20, 3, dtype=torch.float64)
    before = flow.log_prob(x)
    torch.testing.assert_close(before, flow.log_prob(x.expand(N_MEMBERS, -1, -1)))
    flow.weights[1] += 0.1
    changed = (flow.log_prob(x) != before).any(dim=1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("n_features", [2, 3, 7])
def test_two_couplings_transform_every_feature(n_features):
    flow, x = random_flow(n_features, n_transforms=2), torch.randn(20, n_features)
    flow.weights[:, -(n_features**2) :] = 0.0  # Without mixing.
    x = x.double().expand(N_MEMBERS, -1, -1)
    assert (flow.transform(x) != x).any(dim=1).all()


def test_members_start_with_different_hidden_weights():
    weights = new_flow(3).weights
    assert not torch.equal(weights[0], weights[1])


def conditional_flow(n_features, n_conditions=2, seed=0):
    torch.manual_seed(seed)
    base = Mixtures([standard_normal(n_features)] * N_MEMBERS).float()
    regressions = LinearRegressions(
        torch.randn(N_MEMBERS, n_conditions, n_features),
        torch.randn(N_MEMBERS, 1, n_features),
        torch.rand(n_features) + 0.2,
    )
    flow = CouplingFlows(
        base, regressions=regressions, hidden_layer_sizes=(16,), n_transforms=3, n_bins=5
    )
    torch.nn.init.normal_(flow.weights, std=0.3)
    return flow.double().requires_grad_(False)


@pytest.mark.parametrize("n_features", FEATURES)
def test_conditions_stay_as_they_are_and_move_the_features(n_features):
    flow = conditional_flow(n_features)
    rows = torch.randn(N_MEMBERS, 20, 2 + n_features, dtype=torch.float64)
    moved = flow.transform(rows)
    torch.testing.assert_close(moved[..., :2], rows[..., :2])
    torch.testing.assert_close(flow.transform.inv(moved), rows)
    elsewhere = rows.clone()
    elsewhere[..., 0] += 1
    assert (flow.transform(elsewhere)[..., 2:] != moved[..., 2:]).all()


@pytest.mark.parametrize("n_features", FEATURES)
def test_conditional_log_density_carries_the_jacobian_of_the_features(n_features):
    flow = conditional_flow(n_features)
    for rows in torch.randn(5, N_MEMBERS, 1, 2 + n_features, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(flow.transform, rows)
        own = torch.stack([jacobian[k, 0, 2:, k, 0, 2:] for k in range(N_MEMBERS)])
        base = flow.base.log_prob(flow.transform(rows)[..., 2:])[:, 0]
        expected = base + torch.linalg.slogdet(own)[1]
        torch.testing.assert_close(flow.log_prob(rows)[:, 0], expected)


def test_samples_are_given_their_conditions():
    flow = conditional_flow(2)
    conditions = torch.randn(50, 2, dtype=torch.float64)
    rows = flow.sample(conditions, torch.Generator().manual_seed(0))
    assert rows.shape == (N_MEMBERS, 50, 4)
    torch.testing.assert_close(rows[..., :2], conditions.expand(N_MEMBERS, -1, -1))
