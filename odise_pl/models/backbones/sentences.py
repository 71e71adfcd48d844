"""Sentences about images, for text captioners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.frozen import Frozen


class NameRanking(Frozen):
    """A sentence of the names that CLIP ranks highest for an image.

    Args:
        clip: the shared frozen CLIP.
        names: the vocabulary.
        top: names per sentence, best first.
        template: of the sentence; ``{}`` is the comma-separated names.
        prompt: of a name for CLIP; ``{}`` is the name.

    Raises:
        SettingError: a template has no ``{}``, or ``top`` is out of range.
    """

    embeddings: Tensor

    def __init__(
        self,
        clip: FrozenCLIP,
        names: Sequence[str],
        top: int = 5,
        template: str = "a photo of {}.",
        prompt: str = "a photo of a {}.",
    ) -> None:
        super().__init__()
        check_number("captioner.top", top, 1, most=len(names))
        for option, value in (("template", template), ("prompt", prompt)):
            if "{}" not in value:
                raise SettingError(f"captioner.{option}={value!r} needs {{}} for the names")
        self.clip, self.names, self.top, self.template = clip, tuple(names), top, template
        texts = clip.encode_text([prompt.replace("{}", name) for name in names])
        self.register_buffer("embeddings", F.normalize(texts, dim=-1), persistent=False)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[str]:
        """One sentence for each of the images [N, 3, H, W] in 0..1."""
        # the norm of an image embedding does not change the order of names
        similarity = self.clip.encode_image(images).float() @ self.embeddings.float().T
        best = similarity.topk(self.top, dim=1).indices.tolist()
        return [self.template.replace("{}", ", ".join(self.names[i] for i in row)) for row in best]
