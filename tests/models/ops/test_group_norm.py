"""Group normalisation of channels-last maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odise_pl.models.ops.group_norm import replace_group_norms


def norms(channels: int) -> tuple[nn.Sequential, nn.GroupNorm]:
    """A network of one norm, replaced, and a norm of the same weights."""
    torch.manual_seed(0)
    original = nn.GroupNorm(4, channels, eps=1e-6)
    nn.init.normal_(original.weight)
    nn.init.normal_(original.bias)
    network = nn.Sequential(original)
    replace_group_norms(network)
    return network, original


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (2, 8, 35)])
def test_channels_last_maps_have_the_result_of_contiguous_ones(shape: tuple[int, ...]) -> None:
    network, original = norms(8)
    x = 3 + torch.randn(shape, generator=torch.Generator().manual_seed(1))
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert network.state_dict().keys() == nn.Sequential(original).state_dict().keys()
    with torch.no_grad():
        found = network(last)
        torch.testing.assert_close(found, original(x))
        assert torch.equal(network(x), original(x))
    assert found.stride() == last.stride()


def test_large_map_is_accurate() -> None:
    network, original = norms(8)
    x = 3 + torch.randn(1, 8, 512, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network(x.contiguous(memory_format=torch.channels_last))
        exact = original.double()(x.double())
    assert (found - exact).abs().max() < 1e-5
