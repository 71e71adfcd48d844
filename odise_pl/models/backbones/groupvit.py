"""GroupViT (arXiv 2202.11094) by transformers: an image encoder that groups patches, and a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, GroupViTConfig, GroupViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from odise_pl.errors import SettingError
from odise_pl.models.backbones.tokens import VOCABULARY, tokenize
from odise_pl.models.weights import WeightsError, list_first, require_finite


@dataclass(frozen=True)
class GroupViTArchitecture:
    """Sizes of a GroupViT with random weights; the defaults are the published ones.

    Attributes:
        image_size: side of the images whose positions are embedded, in pixels; others interpolate them.
        patch_size: side of a patch in pixels.
        width: of the image encoder.
        heads: attention heads of the image encoder.
        depths: layers before the first grouping, before the second, and after it.
        groups: group tokens, and segments that come out, of the two groupings.
        text_width: width of the text encoder.
        text_layers: layers of the text encoder.
        text_heads: attention heads of the text encoder.
        text_vocabulary: token embeddings, see :func:`~odise_pl.models.backbones.tokens.tokenizer`.
        text_length: tokens that a text is cut to.
        embed_dim: width of the embeddings of images and texts.
        projection_width: of the hidden layer before them.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    heads: int = 6
    depths: Sequence[int] = (6, 3, 3)
    groups: Sequence[int] = (64, 8)
    text_width: int = 256
    text_layers: int = 12
    text_heads: int = 4
    text_vocabulary: int = VOCABULARY
    text_length: int = 77
    embed_dim: int = 256
    projection_width: int = 4096


class GroupViT(nn.Module):
    """Image and text encoder, trained together; it stands where other networks have backbone and CLIP.

    Statistics of its batch norms stay, as in all networks here.

    Args:
        model: transformers' network.
        mean, std: of the images' channels.

    Attributes:
        prompt: None; a CLIP may have a trained one.
    """

    mean: Tensor
    std: Tensor
    model: Any  # transformers has no types for the members used here
    prompt = None

    def __init__(
        self,
        model: GroupViTModel,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.train(self.training)

    def train(self, mode: bool = True) -> GroupViT:
        """In training mode, patches are assigned by a straight-through Gumbel softmax over the groups."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    @property
    def patch_size(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    @property
    def logit_scale(self) -> Tensor:
        """Factor of cosine similarities, at most 100."""
        scale: Tensor = self.model.logit_scale.exp().clamp(max=100)
        return scale

    def group(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Segments of images.

        Args:
            images: [N, 3, H, W] in 0..1, sides multiples of the patch; positions are interpolated.

        Returns:
            [N, G, width], the segments after the last layer.
            the soft assignment of each grouping, which sums to 1 over the new groups: of patches, row by row,
            to 64 groups [N, 64, patches], and of these to 8 [N, 8, 64].
        """
        vision = self.model.vision_model
        # vision_model(...) takes images of one size only
        patches = vision.embeddings((images - self.mean) / self.std, interpolate_pos_encoding=True)
        found = vision.encoder(hidden_states=patches, output_attentions=True, return_dict=True)
        return vision.layernorm(found.last_hidden_state), list(found.attentions)

    def embed_segments(self, segments: Tensor) -> Tensor:
        """Embeddings [..., D], not normalised, of segments [..., width].

        An image is the mean of its segments.
        """
        embeddings: Tensor = self.model.visual_projection(segments.flatten(0, -2))
        return embeddings.unflatten(0, segments.shape[:-1])

    def encode_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Embeddings [len(texts), D], not normalised; at most ``chunk`` texts in a pass. Gradients flow."""
        sizes = self.model.config.text_config
        tokens = tokenize(texts, sizes.vocab_size, sizes.max_position_embeddings)
        # the end token is the largest; the encoder is causal, so what follows it changes nothing
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1].to(self.mean.device)
        pooled = [self.model.text_model(input_ids=part).pooler_output for part in tokens.split(chunk)]
        embeddings: Tensor = self.model.text_projection(torch.cat(pooled))
        return embeddings


def build_groupvit_model(a: GroupViTArchitecture) -> GroupViTModel:
    """A network of transformers with random weights."""
    groups = tuple(a.groups)
    vision = {
        "image_size": a.image_size, "patch_size": a.patch_size, "hidden_size": a.width,
        "intermediate_size": 4 * a.width, "num_attention_heads": a.heads, "depths": tuple(a.depths),
        "num_hidden_layers": sum(a.depths), "num_group_tokens": (*groups, 0),
        "num_output_groups": (*groups, groups[-1]),
    }  # fmt: skip
    text = {
        "hidden_size": a.text_width, "intermediate_size": 4 * a.text_width,
        "num_hidden_layers": a.text_layers, "num_attention_heads": a.text_heads,
        "vocab_size": a.text_vocabulary, "max_position_embeddings": a.text_length, "pad_token_id": 0,
        "bos_token_id": a.text_vocabulary - 2, "eos_token_id": a.text_vocabulary - 1,
    }  # fmt: skip
    model = GroupViTModel(
        GroupViTConfig(
            vision_config=vision,
            text_config=text,
            projection_dim=a.embed_dim,
            projection_intermediate_dim=a.projection_width,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("group_token", "position_embeddings")):  # zero in transformers: all groups alike
            nn.init.trunc_normal_(parameter, std=0.02)
    return model


def load_groupvit(weights: str) -> GroupViT:
    """Load a network in transformers' format.

    Args:
        weights: a folder with ``config.json``, the weights, and ``preprocessor_config.json``, which has mean
            and deviation of images; or a hub id.

    Raises:
        WeightsError: the network is missing, incomplete, or no GroupViT.
    """
    kind: Any = GroupViTModel
    try:
        model, report = kind.from_pretrained(weights, output_loading_info=True, attn_implementation="eager")
        images = CLIPImageProcessor.from_pretrained(weights)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"cannot load GroupViT from backbone.weights={weights}: {error}; give a folder with its network "
            "and preprocessor_config.json (odise weights fetch groupvit), or a hub id such as "
            "nvidia/groupvit-gcc-yfcc"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(f"backbone.weights={weights} lacks {list_first('tensors of GroupViT', missing)}")
    require_finite(model.state_dict(), f"backbone.weights={weights}")
    return GroupViT(model.float(), images.image_mean, images.image_std)


@dataclass(frozen=True)
class GroupViTSettings:
    """Settings of a GroupViT.

    Attributes:
        weights: a folder in transformers' format, a hub id, or ``random``.
        source: the command that fetches the weights, for messages.
        architecture: of random weights; others have their own.
    """

    weights: str = "random"
    source: str = ""
    architecture: GroupViTArchitecture = field(default_factory=GroupViTArchitecture)

    def __post_init__(self) -> None:
        if not isinstance(self.weights, str):
            raise SettingError(f"backbone.weights={self.weights}: give a folder, a hub id, or random")

    def load(self) -> GroupViT:
        """The network.

        Raises:
            WeightsError: the weights are missing or do not fit.
        """
        if self.weights == "random":
            return GroupViT(build_groupvit_model(self.architecture))
        return load_groupvit(self.weights)
