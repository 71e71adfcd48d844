"""Pre-training of the small world's diffusion model, on latents of its autoencoder and texts of its CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning
import numpy as np
import torch
from open_clip import CLIP
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from odise_pl.models.backbones.latent_diffusion import noise_schedule
from odise_pl.models.backbones.stable_diffusion import build_diffusion, tokenize
from odise_pl.models.backbones.timesteps import STEPS
from odise_pl.models.weights import load_exactly
from odise_pl.toyworld.captions import pick
from scripts.pretrain_toyworld.corpus import SIDE, Box, Corpus
from scripts.pretrain_toyworld.models import DIFFUSION, VOCABULARY
from scripts.pretrain_toyworld.schedule import Batch, Schedule, pixels

HALF_SIZE = 4000  # number of the first batch of full size
_DROPPED_CAPTIONS = 0.1  # share of empty texts, for classifier-free guidance
_SNR_LIMIT = 5.0
_SHOWN = 2  # details of a picture, enlarged
_CLEAR = 32  # least longer side in pixels of a detail that is shown enlarged
_MARGIN = 0.1  # on each side of it, relative to its longer side
_AT_ONCE = 50  # views
_WHOLE = 0.75  # views per picture that are also encoded in full size, which is slow


@dataclass(frozen=True)
class Latents:
    """Latents and captions of views.

    Attributes:
        whole: latents [M, 2, C, h, w] of the first M views, plain and mirrored.
        half: latents [N, 2, C, h / 2, w / 2] of all views at half the size.
        captions: of all views.
    """

    whole: Tensor
    half: Tensor
    captions: Sequence[Sequence[str]]


def views(corpus: Corpus) -> Iterator[tuple[np.ndarray, Sequence[str]]]:
    """Every picture with its captions, and some of its details, enlarged, with their own captions."""
    for index, image in enumerate(corpus.images):
        yield image, corpus.captions[index]
        clear = [detail for detail in corpus.details[index] if _side(detail.box) >= _CLEAR]
        for number in np.random.default_rng([0, index]).permutation(len(clear))[:_SHOWN]:
            yield enlarge(image, clear[number].box), clear[number].captions


def _side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def enlarge(image: np.ndarray, box: Box) -> np.ndarray:
    """The square around a box, within the picture, resized to the picture's size."""
    side = min(SIDE, round((1 + 2 * _MARGIN) * _side(box)))
    left, top = (min(max(0, (low + high - side) // 2), SIDE - side) for low, high in (box[::2], box[1::2]))
    cut = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@torch.no_grad()
def encode_views(vae: Any, corpus: Corpus) -> Latents:
    """Latents of unit variance, in half precision."""
    whole: list[Tensor] = []
    half: list[Tensor] = []
    captions: list[Sequence[str]] = []
    every, enough = views(corpus), _WHOLE * len(corpus)
    while batch := list(islice(every, _AT_ONCE)):
        images = pixels([image for image, _ in batch])
        if len(captions) < enough:
            whole.append(_encode_both_ways(vae, images))
        half.append(_encode_both_ways(vae, F.avg_pool2d(images, 2)))
        captions += [texts for _, texts in batch]
    return Latents(torch.cat(whole), torch.cat(half), captions)


def _encode_both_ways(vae: Any, images: Tensor) -> Tensor:
    both = 2 * torch.cat([images, images.flip(-1)]) - 1
    # not in bfloat16, which is 40 times as slow on processors that lack it
    latents: Tensor = vae.encode(both).latent_dist.mean * vae.config.scaling_factor
    return torch.stack(latents.chunk(2), dim=1).half()


@torch.no_grad()
def text_encoder_of(clip: CLIP) -> CLIPTextModel:
    """CLIP's text encoder as Stable Diffusion contains it, frozen (arXiv 2112.10752).

    It takes longer texts than CLIP: additional positions, which only padding uses, repeat CLIP's last one.
    """
    encoder = build_diffusion(DIFFUSION).text_encoder
    positions = encoder.get_parameter("embeddings.position_embedding.weight")
    known = clip.positional_embedding
    tensors = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": known[torch.arange(len(positions)).clamp(max=len(known) - 1)],
        **_prefixed("final_layer_norm", clip.ln_final.state_dict()),
    }
    for number, block in enumerate(clip.transformer.resblocks):
        layer = f"encoder.layers.{number}"
        for theirs, ours in _LAYER_PARTS.items():
            tensors |= _prefixed(f"{layer}.{ours}", block.get_submodule(theirs).state_dict())
        for kind in ("weight", "bias"):
            joined = block.attn.get_parameter(f"in_proj_{kind}")
            for name, part in zip("qkv", joined.chunk(3), strict=True):
                tensors[f"{layer}.self_attn.{name}_proj.{kind}"] = part
    load_exactly(encoder, tensors, "CLIP's text encoder")
    return encoder.requires_grad_(False)


_LAYER_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def diffusion_batch(latents: Latents, size: int, random: np.random.Generator, number: int) -> Batch:
    """``latents``, ``tokens`` of one caption each or of the empty text, ``noise`` and diffusion ``steps``.

    The first batches have half the size, at a third of the cost, as Stable Diffusion first learned at 256
    pixels.
    """
    kept = latents.half if number < HALF_SIZE else latents.whole
    indices = random.integers(len(kept), size=size)
    captions = [_caption(latents.captions[index], random) for index in indices]
    # "to the left of" is wrong in a mirrored picture
    sided = torch.tensor([" left of" in text or " right of" in text for text in captions])
    mirrored = torch.from_numpy(random.integers(0, 2, size)) * ~sided
    values = kept[torch.from_numpy(indices), mirrored].float()
    noise = torch.from_numpy(random.standard_normal(values.shape, np.float32))
    times = torch.from_numpy(random.integers(0, STEPS, size))
    tokens = tokenize(captions, DIFFUSION.text_pad, VOCABULARY)
    return {"latents": values, "tokens": tokens, "noise": noise, "steps": times}


def _caption(captions: Sequence[str], random: np.random.Generator) -> str:
    return "" if random.random() < _DROPPED_CAPTIONS else pick(captions, random)


class Denoiser(lightning.LightningModule):
    """Trains the UNet, with a frozen text encoder (arXiv 2112.10752).

    Errors are weighted by the signal-to-noise ratio of their step, at most 5 (arXiv 2303.09556), for faster
    learning.
    """

    alphas_cumprod: Tensor

    def __init__(self, unet: Any, text_encoder: CLIPTextModel, schedule: Schedule) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.schedule = unet, text_encoder, schedule
        self.register_buffer("alphas_cumprod", noise_schedule().float(), persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error of the noise predicted from a noisy latent."""
        signal = self.alphas_cumprod[batch["steps"]].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * batch["latents"] + (1 - signal).sqrt() * batch["noise"]
        context = self.text_encoder(batch["tokens"]).last_hidden_state
        predicted = self.unet(noisy, batch["steps"], context).sample
        error = (predicted - batch["noise"]).square().mean((1, 2, 3))
        ratio = (signal / (1 - signal)).flatten()
        loss = (error * (_SNR_LIMIT / ratio).clamp(max=1)).mean()
        self.log_dict({"loss": loss, "error": error.mean()}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.unet.parameters())
