"""Captioners: the conditioning of a diffusion model on an image (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.backbones.text_cache import TextCache

# One caption per image, None if it has none.
Captions = Sequence[str | None] | None
# Maps images [N, 3, H, W] in 0..1 to N sentences.
Describe = Callable[[Tensor], list[str]]


class PositionalLinear(nn.Module):
    """Maps one vector to one vector per position: ``linear(x) + position``."""

    def __init__(self, in_features: int, out_features: int, positions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.positional_embedding = nn.Parameter(torch.empty(1, positions, out_features))
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] to [N, positions, out_features]."""
        return self.linear(x).unsqueeze(1) + self.positional_embedding


class Captioner(nn.Module):
    """Base of all captioners with the learnable time embedding ``tanh(alpha) * (W clip(x) + p)``.

    alpha starts at zero, so training starts from the fixed time embedding.

    Args:
        clip: the shared frozen CLIP.
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        self.clip = clip

    def learn_time(self, time_dim: int | None, steps: int) -> None:
        """Add the time embedding's parameters; call it last, because it draws random numbers.

        Args:
            time_dim: width of the UNet's time embedding; None keeps the time embedding fixed.
            steps: number of diffusion steps.
        """
        self.time_project = PositionalLinear(self.clip.embed_dim, time_dim, steps) if time_dim else None
        self.alpha_time = nn.Parameter(torch.zeros(time_dim)) if time_dim else None

    def time(self, images: Tensor, embedding: Tensor | None = None) -> Tensor | None:
        """[N, steps, time_dim] for images [N, 3, H, W]; None if time is fixed.

        ``embedding``: the images' CLIP embeddings, if already computed.
        """
        if self.time_project is None or self.alpha_time is None:
            return None
        embedding = self.clip.encode_image(images) if embedding is None else embedding
        return torch.tanh(self.alpha_time) * self.time_project(embedding)


class ImplicitCaptioner(Captioner):
    """The CLIP embedding projected to pseudo-words: ``uncond + tanh(alpha) * (W clip(x) + p)``.

    alpha starts at zero, so training starts from the unconditional model.

    Args:
        clip: the shared frozen CLIP.
        uncond: [1, tokens, context_dim], the conditioning of the empty text.
        time_dim, steps: see :meth:`Captioner.learn_time`.
    """

    uncond: Tensor

    def __init__(self, clip: FrozenCLIP, uncond: Tensor, time_dim: int | None = None, steps: int = 1) -> None:
        super().__init__(clip)
        _, tokens, context_dim = uncond.shape
        self.register_buffer("uncond", uncond.detach().clone(), persistent=False)
        self.clip_project = PositionalLinear(clip.embed_dim, context_dim, tokens)
        self.alpha_cond = nn.Parameter(torch.zeros(1, tokens, context_dim))
        self.learn_time(time_dim, steps)

    def forward(self, images: Tensor, captions: Captions = None) -> Conditioning:
        """Conditioning for images [N, 3, H, W] in 0..1; captions are ignored."""
        embedding = self.clip.encode_image(images)
        context = self.uncond + torch.tanh(self.alpha_cond) * self.clip_project(embedding)
        return Conditioning(context, self.time(images, embedding))


class EmptyCaptioner(Captioner):
    """The conditioning of the empty text for every image.

    Args:
        clip: the shared frozen CLIP.
        uncond: [1, tokens, context_dim], the conditioning of the empty text.
        time_dim, steps: see :meth:`Captioner.learn_time`.
    """

    uncond: Tensor

    def __init__(self, clip: FrozenCLIP, uncond: Tensor, time_dim: int | None = None, steps: int = 1) -> None:
        super().__init__(clip)
        self.register_buffer("uncond", uncond.detach().clone(), persistent=False)
        self.learn_time(time_dim, steps)

    def forward(self, images: Tensor, captions: Captions = None) -> Conditioning:
        """Conditioning for images [N, 3, H, W]; captions are ignored."""
        return Conditioning(self.uncond.expand(len(images), -1, -1), self.time(images))


class TextCaptioner(Captioner):
    """A sentence about each image, encoded by the diffusion model's text encoder.

    Args:
        clip: the shared frozen CLIP.
        describe: generates a sentence for each image; None uses precomputed captions.
        encode: the frozen text encoder, see :class:`~odise_pl.models.backbones.contract.ConditioningSpec`.
        time_dim, steps: see :meth:`Captioner.learn_time`.
        remember: number of cached sentences; 0.24 MB each for SD 1.x.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        describe: Describe | None,
        encode: nn.Module,
        time_dim: int | None = None,
        steps: int = 1,
        remember: int = 256,
    ) -> None:
        super().__init__(clip)
        check_number("captioner.remember", remember, 1)
        self.describe, self.encode, self._contexts = describe, encode, TextCache(encode, remember)
        self.learn_time(time_dim, steps)

    def forward(self, images: Tensor, captions: Captions = None) -> Conditioning:
        """Conditioning for images [N, 3, H, W] in 0..1.

        Raises:
            SettingError: an image has no precomputed caption, and none is generated.
        """
        sentences = list(captions or ()) if self.describe is None else self.describe(images)
        known = [sentence for sentence in sentences if sentence is not None]
        if len(known) < len(images):
            raise SettingError(
                f"{len(images) - len(known)} of {len(images)} images have no precomputed caption: write them "
                "into the shards with odise captions, or set captioner.on_the_fly=true"
            )
        return Conditioning(self._contexts(known, images.device), self.time(images))
