"""Sentences about images, and their encoding: parts of the captioners that speak in words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.stable_diffusion import END_OF_TEXT, encode_prompts
from odise_pl.models.frozen import Frozen


class PromptEncoder(Frozen):
    """The diffusion model's text encoder, which sees every sentence once as long as it is remembered.

    Args:
        text_encoder: the frozen encoder.
        pad: token that fills up the 77.
        capacity: sentences remembered; the one not asked for longest is forgotten first. A sentence of
            SD 1.x takes 0.24 MB.
    """

    def __init__(self, text_encoder: CLIPTextModel, pad: int = END_OF_TEXT, capacity: int = 256) -> None:
        super().__init__()
        if capacity < 1:
            raise SettingError(f"captioner.remember={capacity} must be 1 or more")
        self.text_encoder, self.pad, self.capacity = text_encoder, pad, capacity
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self.freeze()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Conditioning [len(texts), 77, context_dim] on the encoder's device."""
        device = next(self.text_encoder.parameters()).device
        now = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in now]
        if new:
            # what validation encodes in inference mode, training must be able to use
            with torch.inference_mode(False):
                encoded = encode_prompts(self.text_encoder, new, self.pad)
                now |= {text: row.clone() for text, row in zip(new, encoded, strict=True)}
        self._remember(now)
        return torch.stack([now[text].to(device) for text in texts])

    def _remember(self, now: dict[str, Tensor]) -> None:
        for text, row in now.items():
            self._known[text] = row
            self._known.move_to_end(text)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)


class NameRanking(Frozen):
    """The names that CLIP finds most like an image, as a sentence.

    Args:
        clip: the shared frozen CLIP.
        names: the vocabulary.
        top: names of a sentence, the best first.
        template: ``{}`` stands for the names, separated by commas.
        prompt: how CLIP reads a name.

    Raises:
        SettingError: a template without ``{}``, or more names wanted than there are.
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
        if not 1 <= top <= len(names):
            raise SettingError(
                f"captioner.top={top} must lie in 1..{len(names)}, the size of captioner.vocabulary"
            )
        for option, value in (("template", template), ("prompt", prompt)):
            if "{}" not in value:
                raise SettingError(f"captioner.{option}={value!r} needs a {{}} where names go")
        self.clip, self.names, self.top, self.template = clip, tuple(names), top, template
        texts = clip.encode_text([prompt.replace("{}", name) for name in names])
        self.register_buffer("embeddings", F.normalize(texts, dim=-1), persistent=False)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[str]:
        """One sentence for each of the images [N, 3, H, W] in 0..1."""
        # the length of an image's own embedding does not change the order of names
        similarity = self.clip.encode_image(images).float() @ self.embeddings.float().T
        best = similarity.topk(self.top, dim=1).indices.tolist()
        return [self.template.replace("{}", ", ".join(self.names[i] for i in row)) for row in best]
