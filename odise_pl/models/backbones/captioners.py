"""What the diffusion model is told about an image (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.structures import TensorStruct

# What a data set says of each image, where it says something.
Captions = Sequence[str | None] | None


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


class Captioner(nn.Module):
    """Base of all captioners: the learnable time embedding, ``tanh(alpha) * (W clip(x) + p)``.

    alpha starts at zero: training begins at the fixed time embedding.

    Args:
        clip: the shared frozen CLIP.
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        self.clip = clip

    def learn_time(self, time_dim: int | None, steps: int) -> None:
        """Add the time embedding's parameters.

        Args:
            time_dim: width of the UNet's time embedding; None leaves the time embedding as it is.
            steps: number of diffusion steps that are read.
        """
        self.time_project = PositionalLinear(self.clip.embed_dim, time_dim, steps) if time_dim else None
        self.alpha_time = nn.Parameter(torch.zeros(time_dim)) if time_dim else None

    def time(self, embedding: Tensor) -> Tensor | None:
        """[N, steps, time_dim] from CLIP's image embeddings [N, embed_dim]; None if time is fixed."""
        if self.time_project is None or self.alpha_time is None:
            return None
        return torch.tanh(self.alpha_time) * self.time_project(embedding)

    def time_of_images(self, images: Tensor) -> Tensor | None:
        """:meth:`time` of images [N, 3, H, W]; CLIP does not run when time is fixed."""
        return None if self.time_project is None else self.time(self.clip.encode_image(images))


class ImplicitCaptioner(Captioner):
    """The image's CLIP embedding, projected to pseudo-words: ``uncond + tanh(alpha) * (W clip(x) + p)``.

    alphas start at zero: training begins at the unconditional model.

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
        """Conditioning for images [N, 3, H, W] in 0..1; captions are not read."""
        embedding = self.clip.encode_image(images)
        context = self.uncond + torch.tanh(self.alpha_cond) * self.clip_project(embedding)
        return Conditioning(context, self.time(embedding))


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
        """Conditioning for images [N, 3, H, W]; captions are not read."""
        return Conditioning(self.uncond.expand(len(images), -1, -1), self.time_of_images(images))


class TextCaptioner(Captioner):
    """A sentence about every image, encoded by the diffusion model's own text encoder.

    Args:
        clip: the shared frozen CLIP.
        describe: images [N, 3, H, W] in 0..1 to N sentences; None takes the captions that come with them.
        encode: N sentences, some of which may be the same, to [N, tokens, context_dim].
        time_dim, steps: see :meth:`Captioner.learn_time`.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        describe: Callable[[Tensor], list[str]] | None,
        encode: Callable[[Sequence[str]], Tensor],
        time_dim: int | None = None,
        steps: int = 1,
    ) -> None:
        super().__init__(clip)
        self.describe, self.encode = describe, encode
        self.learn_time(time_dim, steps)

    def forward(self, images: Tensor, captions: Captions = None) -> Conditioning:
        """Conditioning for images [N, 3, H, W] in 0..1.

        Raises:
            SettingError: an image has no caption, and nothing makes one.
        """
        sentences = _known(captions, len(images)) if self.describe is None else self.describe(images)
        return Conditioning(self.encode(sentences), self.time_of_images(images))


def _known(captions: Captions, count: int) -> list[str]:
    known = [caption for caption in captions or () if caption is not None]
    if len(known) < count:
        raise SettingError(
            f"{count - len(known)} of {count} images have no precomputed caption, which this "
            "captioner reads: write captions into the shards with python -m odise_pl.data.prepare captions, "
            "or make them when the images are seen with captioner.on_the_fly=true"
        )
    return known
