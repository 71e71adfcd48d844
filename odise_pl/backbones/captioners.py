"""What the diffusion model is told about an image (section 3.3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odise_pl.backbones.clip import FrozenCLIP
from odise_pl.structures import TensorStruct


@dataclass(frozen=True)
class Conditioning(TensorStruct):
    """Input of the UNet besides the latent.

    Attributes:
        context: [N, 77, context_dim].
        time: [N, steps, time_dim], added to the time embedding; None adds nothing.
    """

    context: Tensor
    time: Tensor | None


class PositionalLinear(nn.Module):
    """One vector in, one vector per position out: ``linear(x) + position``."""

    def __init__(self, in_features: int, out_features: int, positions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.positional_embedding = nn.Parameter(torch.empty(1, positions, out_features))
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] to [N, positions, out_features]."""
        return self.linear(x).unsqueeze(1) + self.positional_embedding


class ImplicitCaptioner(nn.Module):
    """The image's CLIP embedding, projected to pseudo-words: ``uncond + tanh(alpha) * (W clip(x) + p)``.

    alphas start at zero: training begins at the unconditional model.

    Args:
        clip: the shared frozen CLIP.
        uncond: [1, tokens, context_dim], the conditioning of the empty text.
        time_dim: width of the UNet's time embedding; None leaves the time embedding as it is.
        steps: number of diffusion steps that are read.
    """

    uncond: Tensor

    def __init__(self, clip: FrozenCLIP, uncond: Tensor, time_dim: int | None = None, steps: int = 1) -> None:
        super().__init__()
        _, tokens, context_dim = uncond.shape
        self.clip = clip
        self.register_buffer("uncond", uncond.detach().clone(), persistent=False)
        self.clip_project = PositionalLinear(clip.embed_dim, context_dim, tokens)
        self.alpha_cond = nn.Parameter(torch.zeros(1, tokens, context_dim))
        self.time_project = PositionalLinear(clip.embed_dim, time_dim, steps) if time_dim else None
        self.alpha_time = nn.Parameter(torch.zeros(time_dim)) if time_dim else None

    def forward(self, images: Tensor) -> Conditioning:
        """Conditioning for images [N, 3, H, W] in 0..1."""
        embedding = self.clip.encode_image(images)
        context = self.uncond + torch.tanh(self.alpha_cond) * self.clip_project(embedding)
        if self.time_project is None or self.alpha_time is None:
            return Conditioning(context, None)
        return Conditioning(context, torch.tanh(self.alpha_time) * self.time_project(embedding))


class EmptyCaptioner(nn.Module):
    """The conditioning of the empty text for every image."""

    uncond: Tensor

    def __init__(self, uncond: Tensor) -> None:
        super().__init__()
        self.register_buffer("uncond", uncond.detach().clone(), persistent=False)

    def forward(self, images: Tensor) -> Conditioning:
        """Conditioning for images [N, 3, H, W]."""
        return Conditioning(self.uncond.expand(len(images), -1, -1), None)
