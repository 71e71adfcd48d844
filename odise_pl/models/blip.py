"""Image captions by BLIP (arXiv 2201.12086), for captioners and for ``odise captions``."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from odise_pl.errors import check_number
from odise_pl.models.frozen import Frozen
from odise_pl.models.weights import WeightsError, list_first, require_finite


class BlipSentences(Frozen):
    """Captions by greedy decoding, so an image always gets the same caption.

    Args:
        model: the captioning model.
        tokenizer: its tokenizer.
        max_tokens: limit of a caption's length.
    """

    mean: Tensor
    std: Tensor
    model: Any  # transformers has no types for the members used here

    def __init__(self, model: BlipForConditionalGeneration, tokenizer: Any, max_tokens: int = 20) -> None:
        super().__init__()
        check_number("captioner.max_tokens", max_tokens, 1)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.register_buffer("mean", torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, images: Tensor) -> list[str]:
        """One caption for each of the images [N, 3, H, W] in 0..1."""
        return self.caption(self.pixels(images))

    def pixels(self, images: Tensor) -> Tensor:
        """BLIP's input for images [N, 3, H, W] in 0..1: resized to a square and normalised."""
        side = self.model.config.vision_config.image_size
        pixels = F.interpolate(images, (side, side), mode="bicubic", align_corners=False, antialias=True)
        return (pixels.clamp(0, 1) - self.mean) / self.std

    @torch.no_grad()
    def caption(self, pixels: Tensor) -> list[str]:
        """One caption for each of the images from :meth:`pixels`."""
        # explicit, because the model's own generation settings may differ; num_beams=1 is greedy
        tokens = self.model.generate(
            pixel_values=pixels, max_new_tokens=self.max_tokens, num_beams=1, do_sample=False
        )
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def digest(self) -> str:
        """SHA-256 of the weights and the tokenizer's vocabulary, which captions depend on."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load_blip(weights: str, max_tokens: int = 20, option: str = "captioner.weights=") -> BlipSentences:
    """Load BLIP.

    Args:
        weights: a folder written by ``save_pretrained``, or a hub id.
        max_tokens: limit of a caption's length.
        option: the user's option for ``weights``, for messages.

    Raises:
        WeightsError: the model is missing, incomplete, or not a BLIP captioning model.
    """
    kind: Any = BlipForConditionalGeneration
    try:
        model, report = kind.from_pretrained(weights, output_loading_info=True)
        # by default, transformers asks the user whether to run code from the tokenizer's folder
        tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(
            f"cannot load BLIP from {option}{weights}: {error}; give a folder with its model and "
            "tokenizer, or a hub id such as Salesforce/blip-image-captioning-base"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(f"{option}{weights} lacks {list_first('tensors of BLIP', missing)}")
    require_finite(model.state_dict(), f"{option}{weights}")
    return BlipSentences(model.float(), tokenizer, max_tokens)
