"""The frozen CLIP model: embeddings of images, texts and masks.

Captioner and classifiers share one instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.tokens import VOCABULARY, tokenize
from odise_pl.models.frozen import Frozen, copy_to_memory, inner_blocks
from odise_pl.models.weights import WeightsError, load_exactly, read_checkpoint, require_finite, tensors_of

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPArchitecture:
    """Sizes of a CLIP model; the defaults are OpenAI's ViT-L/14 at 336 pixels.

    Attributes:
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels.
        vision_width: width of the image encoder.
        vision_layers: layers of the image encoder.
        vision_head_width: width of an attention head of the image encoder.
        text_width: width of the text encoder.
        text_layers: layers of the text encoder.
        text_heads: attention heads of the text encoder.
        embed_dim: width of the embeddings of images and texts.
        quick_gelu: OpenAI's activation instead of GELU.
        text_vocabulary: token embeddings, see :func:`~odise_pl.models.backbones.tokens.tokenizer`.
        text_length: tokens that a text is cut to.
        trunk: timm's name of a convolutional network in place of the ViT; the sizes of the ViT are unused.
        trunk_head: of the convolutional network: ``mlp`` or ``linear``.
    """

    image_size: int = 336
    patch_size: int = 14
    vision_width: int = 1024
    vision_layers: int = 24
    vision_head_width: int = 64
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    embed_dim: int = 768
    quick_gelu: bool = True
    text_vocabulary: int = VOCABULARY
    text_length: int = 77
    trunk: str = ""
    trunk_head: str = "mlp"


def build_clip(a: CLIPArchitecture) -> open_clip.CLIP:
    """An open_clip model with random weights."""
    vision: dict[str, Any] = {"image_size": a.image_size, "patch_size": a.patch_size, "width": a.vision_width,
              "layers": a.vision_layers, "head_width": a.vision_head_width}  # fmt: skip
    if a.trunk:
        vision = {"image_size": a.image_size, "timm_model_name": a.trunk, "timm_pool": "",
                  "timm_proj": a.trunk_head, "timm_drop": 0.0}  # fmt: skip
    text = {"width": a.text_width, "layers": a.text_layers, "heads": a.text_heads,
            "vocab_size": a.text_vocabulary, "context_length": a.text_length}  # fmt: skip
    return open_clip.CLIP(a.embed_dim, vision, text, quick_gelu=a.quick_gelu)


def load_clip(weights: str, architecture: CLIPArchitecture, mapped: bool = False) -> open_clip.CLIP:
    """Build a CLIP model and load its weights.

    Args:
        weights: ``random``, or a file with open_clip's names (``.safetensors``, ``.pt``, ``.bin``).
        architecture: of the weights.
        mapped: leave the image encoder's weights in the mapped file; see ``build_odise``.

    Raises:
        WeightsError: weights are missing, damaged, or of another architecture.
    """
    if weights == "random":
        return build_clip(architecture)
    if not Path(weights).is_file():
        raise WeightsError(f"clip.weights={weights} does not exist; give a file, or random")
    model = _on_meta(architecture)
    tensors = {n: t for n, t in tensors_of(read_checkpoint(weights)).items() if n not in _NOT_WEIGHTS}
    require_finite(tensors, weights)
    load_exactly(model, tensors, weights, assign=True)
    copy_to_memory(p for name, p in model.named_parameters() if not (mapped and name.startswith("visual.")))
    return model


# metadata of OpenAI's files, and the attention mask in some files, which is infinite
_NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})


def _on_meta(architecture: CLIPArchitecture) -> open_clip.CLIP:
    """A model on the meta device, apart from its attention mask."""
    with torch.device("meta"):
        model = build_clip(architecture)
    mask = torch.full(model.attn_mask.shape, float("-inf")).triu_(1)
    model.register_buffer("attn_mask", mask, persistent=False)
    return model


class FrozenCLIP(Frozen):
    """CLIP with frozen weights, always in eval mode.

    Args:
        model: an open_clip model; its image encoder is a ViT with a class token, or a convolutional network
            of timm.
        trained: train the stem and the stages of a convolutional image encoder, but not its head.
        prompt_tokens: trained embeddings in front of each text (CoOp, arXiv 2109.01134).

    Attributes:
        prompt: those embeddings [prompt_tokens, width of texts], or None.

    Raises:
        SettingError: a ViT is to be trained, or the prompt leaves no place for a text.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: open_clip.CLIP, trained: bool = False, prompt_tokens: int = 0) -> None:
        super().__init__()
        self.model, self.trained = model, trained
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.freeze()
        if trained and not self.convolutional:
            raise SettingError("clip.trained=true needs a convolutional CLIP: choose clip=convnext_l_320")
        for part in (model.visual.trunk.stem, model.visual.trunk.stages) if trained else ():
            part.requires_grad_(True)
        if prompt_tokens > model.context_length - 3:  # start, end, and a word
            raise SettingError(
                f"clip.prompt_tokens={prompt_tokens}: texts have {model.context_length} tokens"
            )
        start = 0.02 * torch.randn(prompt_tokens, model.token_embedding.embedding_dim)
        self.prompt = nn.Parameter(start) if prompt_tokens else None

    @property
    def learns(self) -> bool:
        """Whether the scores of CLIP are trained."""
        return self.trained or self.prompt is not None

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.model.visual.image_size[0])

    @property
    def convolutional(self) -> bool:
        """Whether the image encoder is a convolutional network, which takes images of any size."""
        return hasattr(self.model.visual, "trunk")

    @property
    def patch_size(self) -> int:
        return int(self.model.visual.patch_size[0])

    @property
    def embed_dim(self) -> int:
        """Width of image and text embeddings."""
        return int(self.model.text_projection.shape[1])

    @property
    def logit_scale(self) -> Tensor:
        """Factor of cosine similarities, at most 100."""
        scale: Tensor = self.model.logit_scale.exp().clamp(max=100)
        return scale

    def blocks(self) -> Iterable[nn.Module]:
        """Parts of the image encoder that are called as a whole; sharding gathers one at a time."""
        visual = self.model.visual
        return inner_blocks(visual.trunk) if self.convolutional else visual.transformer.resblocks.children()

    def normalize(self, images: Tensor) -> Tensor:
        """CLIP's mean and standard deviation, for images [N, 3, H, W] in 0..1."""
        return (images - self.mean) / self.std

    def preprocess(self, images: Tensor) -> Tensor:
        """Shorter side to CLIP's size (bicubic, no antialias), centre crop, normalise: [N, 3, S, S]."""
        size, (height, width) = self.image_size, images.shape[-2:]
        short = min(height, width)
        target = (int(size * height / short), int(size * width / short))
        images = F.interpolate(images, target, mode="bicubic", align_corners=False)
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        return self.normalize(images[..., top : top + size, left : left + size])

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings [N, embed_dim], not normalised, of images [N, 3, H, W] in 0..1."""
        return self.encode_normalized(self.preprocess(images))

    @torch.no_grad()
    def encode_normalized(self, images: Tensor) -> Tensor:
        """Embeddings [N, embed_dim], not normalised, of normalised images [N, 3, S, S] at CLIP's size."""
        features: Tensor = self.model.encode_image(images)
        return features

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps of a convolutional image encoder for images [N, 3, H, W] in 0..1: strides 4, 8, 16 and 32."""
        maps: list[Tensor] = self.model.visual.trunk.forward_intermediates(
            self.normalize(images), intermediates_only=True
        )
        return [one.contiguous() for one in maps]

    def encode_pooled(self, features: Tensor) -> Tensor:
        """Embeddings [B, Q, embed_dim] of means [B, Q, C] of a convolutional encoder's last map."""
        visual = self.model.visual
        pooled = visual.trunk.forward_head(features.flatten(0, 1)[..., None, None])
        embeddings: Tensor = visual.head(pooled).unflatten(0, features.shape[:2])
        return embeddings

    def encode_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Embeddings [len(texts), embed_dim], not normalised; at most ``chunk`` texts in a pass.

        Gradients flow to the prompt.
        """
        length = self.model.context_length - (0 if self.prompt is None else len(self.prompt))
        tokens = tokenize(texts, self.model.vocab_size, length)
        ends = tokens.argmax(dim=1)  # the end token is the largest
        groups = [rows for end in ends.unique() for rows in (ends == end).nonzero()[:, 0].split(chunk)]
        found = [
            self._encode_tokens(tokens[rows, : ends[rows[0]] + 1].to(self.mean.device)) for rows in groups
        ]
        return torch.cat(found)[torch.cat(groups).argsort().to(self.mean.device)]

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed texts of one length [N, L] that end with the end token.

        The encoder is causal: what a text is padded with behind its end does not change its embedding.
        """
        model, x = self.model, self.model.token_embedding(tokens)
        if self.prompt is not None:
            x = torch.cat([x[:, :1], self.prompt.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        length = x.shape[1]
        x = x + model.positional_embedding[:length]
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        embeddings: Tensor = model.ln_final(x[:, -1]) @ model.text_projection
        return embeddings

    @torch.no_grad()
    def encode_masks(self, images: Tensor, visible: Tensor) -> Tensor:
        """Embed each mask in one pass over the image (section 3.5 of the paper; MaskCLIP).

        Every mask gets a copy of the class token, which attends to the original class token and to the
        patches of its mask. The image's tokens do not attend to the copies.

        Args:
            images: [B, 3, S, S] at CLIP's size, already normalised.
            visible: bool [B, Q, patches], True for patches of the mask.

        Returns:
            [B, Q, embed_dim], not normalised.
        """
        return embed_regions(self.model.visual, images, visible)[0]


def embed_patches(visual: open_clip.transformer.VisionTransformer, images: Tensor) -> Tensor:
    """Tokens [B, 1 + patches, width] of normalised images before the first block, the class token first."""
    tokens: Tensor = visual._embeds(images)
    return tokens


def embed_regions(
    visual: open_clip.transformer.VisionTransformer, images: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Embed masks and whole images by CLIP's image encoder, with gradients.

    Arguments as in :meth:`FrozenCLIP.encode_masks`. Returns [B, Q, embed_dim] of the masks and
    [B, embed_dim] of the images, not normalised.
    """
    tokens = embed_patches(visual, images)
    length, regions = tokens.shape[1], visible.shape[1]
    x = torch.cat([tokens, tokens[:, :1].expand(-1, regions, -1)], dim=1)
    mask = x.new_zeros(len(x), x.shape[1], x.shape[1])
    mask[:, :, length:] = float("-inf")  # nothing attends to the copies
    mask[:, length:, 1:length].masked_fill_(~visible, float("-inf"))
    blocks = visual.transformer.resblocks
    mask = mask.repeat_interleave(blocks[0].attn.num_heads, dim=0)
    for block in blocks:
        x = block(x, attn_mask=mask)
    masks, whole = (visual.ln_post(token) @ visual.proj for token in (x[:, length:], x[:, 0]))
    return masks, whole
