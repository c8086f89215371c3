import pytest
import torch

from skjeffreys._torch import resolve_device


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
@pytest.mark.parametrize(
    "device, n_rows, expected",
    [
        ("auto", 4_999, "cpu"),
        ("auto", 5_000, "accelerator"),
        ("cpu", 5_000, "cpu"),
        ("accelerator", 10, "accelerator"),
    ],
)
def test_an_accelerator_is_for_many_rows_or_those_who_ask(
    monkeypatch, accelerator, device, n_rows, expected
):
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available: torch.device(accelerator),
    )
    device, expected = (accelerator if d == "accelerator" else d for d in (device, expected))
    assert resolve_device(device, n_rows).type == expected
    in_double = "cpu" if expected == "mps" else expected
    assert resolve_device(device, n_rows, double=True).type == in_double


def test_without_an_accelerator_many_rows_are_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert resolve_device("auto", 1_000_000) == torch.device("cpu")
