"""What is computed again and what is not; the oracle of a reused result is the layer itself."""

import pytest
import torch
from torch import nn

from vdq.models.reuse import Memory, anew

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Changing(nn.Module):
    """A layer whose function changes when its variant does."""

    variant = 0

    def forward(self, x):
        return x + self.variant


class Casting(nn.Linear):
    """Computes in the dtype of its weights."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


@pytest.fixture
def ask():
    """Runs a layer through one memory, checks its output and returns whether it was called."""
    memory = Memory()

    def run(layer, x):
        calls = []
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        found = memory(layer, x, lambda: layer(x))
        handle.remove()
        assert torch.equal(found, layer(x))
        return bool(calls)

    return run


def test_a_layer_runs_once_for_an_input(ask):
    first, second, other = nn.Linear(4, 5), nn.Linear(4, 5), X.clone()
    assert ask(first, X) and ask(second, X)
    assert not ask(first, X) and not ask(second, X)
    assert ask(first, other) and not ask(first, other)
    assert ask(first, X)  # one result a layer: the last


def test_a_change_inside_the_layer_is_seen(ask):
    layer = nn.Sequential(nn.Identity(), Changing())
    assert ask(layer, X) and not ask(layer, X)
    layer[1].variant = 3
    assert ask(layer, X) and not ask(layer, X)


def test_a_cast_of_the_weights_is_seen(ask):
    layer = Casting(4, 5)
    assert ask(layer, X) and ask(layer.double(), X) and not ask(layer, X)
    layer = nn.Sequential(nn.Identity())
    layer.register_buffer("table", torch.zeros(1))
    assert ask(layer, X) and ask(layer.double(), X) and not ask(layer, X)


def test_anew_keeps_nothing():
    calls = []
    for _ in range(2):
        anew(nn.Identity(), X, lambda: calls.append(1))
    assert len(calls) == 2
