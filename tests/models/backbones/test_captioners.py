from __future__ import annotations

import tiny_models
import torch
from torch.nn import functional as F

from odise_pl.models.backbones.captioners import EmptyCaptioner, ImplicitCaptioner

UNCOND = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    return torch.rand(3, 3, 70, 64, generator=torch.Generator().manual_seed(1))


def test_implicit_captioner_starts_unconditional() -> None:
    condition = ImplicitCaptioner(tiny_models.clip(), UNCOND, 16, 2)(images())
    assert torch.equal(condition.context, UNCOND.expand(3, -1, -1))
    assert condition.time is not None
    assert torch.equal(condition.time, torch.zeros(3, 2, 16))


def test_implicit_captioner_projects_image_embedding() -> None:
    captioner = ImplicitCaptioner(tiny_models.clip(), UNCOND, 16, 2)
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    condition, embedding = captioner(images()), tiny_models.clip().encode_image(images())
    p = dict(captioner.named_parameters())

    def projected(name: str, gate: str) -> torch.Tensor:
        vector = F.linear(embedding, p[f"{name}.linear.weight"], p[f"{name}.linear.bias"])
        return torch.tanh(p[gate]) * (vector[:, None] + p[f"{name}.positional_embedding"])

    torch.testing.assert_close(condition.context, UNCOND + projected("clip_project", "alpha_cond"))
    torch.testing.assert_close(condition.time, projected("time_project", "alpha_time"))


def test_empty_captioner_ignores_images() -> None:
    captioner = EmptyCaptioner(tiny_models.clip(), UNCOND)
    condition = captioner(images())
    assert torch.equal(condition.context, UNCOND.expand(3, -1, -1))
    assert condition.time is None
    assert not [p for p in captioner.parameters() if p.requires_grad]
    assert all(name.startswith("clip.") for name in captioner.state_dict())
