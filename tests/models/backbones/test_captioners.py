from __future__ import annotations

import tiny_models
import torch

from odise_pl.models.backbones.captioners import EmptyCaptioner, ImplicitCaptioner

UNCOND = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    return torch.rand(3, 3, 70, 64, generator=torch.Generator().manual_seed(1))


def stirred(time_dim: int | None = 16, steps: int = 2) -> ImplicitCaptioner:
    captioner = ImplicitCaptioner(tiny_models.clip(), UNCOND, time_dim, steps)
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return captioner


def test_implicit_captioner_starts_unconditional() -> None:
    condition = ImplicitCaptioner(tiny_models.clip(), UNCOND, 16, 2)(images())
    assert torch.equal(condition.context, UNCOND.expand(3, -1, -1))
    assert condition.time is not None
    assert torch.equal(condition.time, torch.zeros(3, 2, 16))


def test_implicit_captioner_projects_image_embedding() -> None:
    captioner = stirred()
    condition = captioner(images())
    embedding = tiny_models.clip().encode_image(images())
    words, times = captioner.clip_project, captioner.time_project
    assert times is not None
    assert captioner.alpha_time is not None
    assert condition.time is not None
    for n in range(3):
        for token in (0, 40, 76):
            word = (
                words.linear.weight @ embedding[n] + words.linear.bias + words.positional_embedding[0, token]
            )
            expected = UNCOND[0, token] + torch.tanh(captioner.alpha_cond[0, token]) * word
            torch.testing.assert_close(condition.context[n, token], expected)
        for step in range(2):
            time = (
                times.linear.weight @ embedding[n] + times.linear.bias + times.positional_embedding[0, step]
            )
            expected = torch.tanh(captioner.alpha_time) * time
            torch.testing.assert_close(condition.time[n, step], expected)


def test_fixed_time_embedding_has_no_parameters() -> None:
    captioner = stirred(time_dim=None)
    assert captioner(images()).time is None
    assert not any("time" in name for name, _ in captioner.named_parameters())


def test_empty_captioner_ignores_images() -> None:
    captioner = EmptyCaptioner(tiny_models.clip(), UNCOND)
    condition = captioner(images())
    assert torch.equal(condition.context, UNCOND.expand(3, -1, -1))
    assert condition.time is None
    assert not [p for p in captioner.parameters() if p.requires_grad]
    assert all(name.startswith("clip.") for name in captioner.state_dict())
