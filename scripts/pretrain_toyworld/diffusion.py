"""Pre-training of the small world's diffusion model, on latents of its autoencoder and texts of its CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor, nn
from transformers import CLIPTextModel

from odise_pl.models.backbones.clip import load_clip
from odise_pl.models.backbones.diffusion_weights import load_network
from odise_pl.models.backbones.latent_diffusion import noise_schedule
from odise_pl.models.backbones.stable_diffusion import build_diffusion
from odise_pl.models.backbones.text_encoders import TOKENS, tokenize
from odise_pl.models.backbones.timesteps import STEPS
from odise_pl.models.weights import load_exactly
from odise_pl.toyworld.make import KINDS
from odise_pl.toyworld.scene import pick
from scripts.pretrain_toyworld.corpus import (
    SIDE,
    Box,
    Corpus,
    Pixels,
    enlarge,
    halve,
    paint_corpus,
)
from scripts.pretrain_toyworld.networks import CLASSES_FOLDER, CLIP, CLIP_FILE, DIFFUSION, DIFFUSION_FOLDER
from scripts.pretrain_toyworld.training import Batch, Recipe, is_full_size, pixels, train

RECIPE = Recipe(pictures=12_000, steps=7_500, batch=64, lr=1e-3, decay=0.998)
_NO_CAPTION = 0.1  # share of empty texts, for classifier-free guidance
_SNR_LIMIT = 5.0
_SHOWN = 2  # details of a picture, enlarged
_CLEAR = 32  # least longer side in pixels of a detail that is shown enlarged
_MARGIN = 0.1  # on each side of it, relative to its longer side
_AT_ONCE = 50  # pictures

Captions = Sequence[str]  # of one view


def pretrain(recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train the UNet and write it with its text encoder to ``out``, where CLIP and the VAE have to be.

    Raises:
        WeightsError: they are missing.
    """
    folder = out / DIFFUSION_FOLDER
    text_encoder = text_encoder_of(load_clip(str(out / CLIP_FILE), CLIP))
    vae = load_network("vae", str(folder))
    batches = partial(diffusion_batch, *encode_views(vae, paint_corpus(recipe.pictures)), recipe.batch)
    torch.manual_seed(0)
    task = Denoiser(build_diffusion(DIFFUSION).unet, text_encoder)
    trained = train(task, batches, recipe, work / "unet.pt", device)
    trained.unet.half().save_pretrained(folder / "unet")
    trained.text_encoder.half().save_pretrained(folder / "text_encoder")


def pretrain_on_classes(recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train a class-conditional UNet and write it to ``out``.

    Each picture is conditioned on one of the categories in it, or on none. In place of the text encoder is
    one without layers: embeddings of names, trained with the UNet; it knows no language. Most pictures have
    half the side, see :func:`is_full_size`. The VAE has to be in ``out``.

    Raises:
        WeightsError: it is missing.
    """
    vae = load_network("vae", str(out / DIFFUSION_FOLDER))
    pictures = paint_corpus(recipe.pictures)
    names = [[KINDS[kind].name for kind in picture.kinds] for picture in pictures]
    images = [picture.image for picture in pictures]
    halves = encode(vae, [halve(image) for image in images])
    latents = encode(vae, images)

    def batches(random: np.random.Generator, number: int) -> Batch:
        chosen = latents if is_full_size(number) else halves
        return diffusion_batch(chosen, names, recipe.batch, random, number)

    torch.manual_seed(0)
    models = build_diffusion(replace(DIFFUSION, text_layers=0))
    task = Denoiser(models.unet, models.text_encoder)
    trained = train(task, batches, recipe, work / f"{CLASSES_FOLDER.name}.pt", device)
    for name, network in {"unet": trained.unet, "text_encoder": trained.text_encoder, "vae": vae}.items():
        network.half().save_pretrained(out / CLASSES_FOLDER / name)


def views(corpus: Corpus) -> Iterator[tuple[Pixels, Captions]]:
    """Every picture with its captions, and some of its details, enlarged, with their own captions."""
    for index, picture in enumerate(corpus):
        yield picture.image, picture.captions
        clear = [detail for detail in picture.details if _longer_side(detail.box) >= _CLEAR]
        for number in np.random.default_rng([0, index]).permutation(len(clear))[:_SHOWN]:
            yield enlarge(picture.image, square_around(clear[number].box)), clear[number].captions


def _longer_side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def square_around(box: Box) -> Box:
    """A square with a margin around a box, within the picture."""
    side = min(SIDE, round((1 + 2 * _MARGIN) * _longer_side(box)))
    left, top = (min(max(0, (low + high - side) // 2), SIDE - side) for low, high in (box[::2], box[1::2]))
    return left, top, left + side, top + side


def encode_views(vae: Any, corpus: Corpus) -> tuple[Tensor, Sequence[Captions]]:
    """The latents of all views, see :func:`encode`, and their captions."""
    images, captions = zip(*views(corpus), strict=True)
    return encode(vae, images), list(captions)


@torch.no_grad()
def encode(vae: Any, images: Sequence[Pixels]) -> Tensor:
    """Latents [N, C, h, w] of unit variance and in half precision."""
    parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
    # not in bfloat16, which is 40 times as slow on processors that lack it
    latents = [
        vae.encode(2 * pixels(part) - 1).latent_dist.mean * vae.config.scaling_factor for part in parts
    ]
    return torch.cat(latents).half()


@torch.no_grad()
def text_encoder_of(clip: open_clip.CLIP) -> CLIPTextModel:
    """CLIP's text encoder as Stable Diffusion contains it, frozen (arXiv 2112.10752).

    It takes longer texts than CLIP: additional positions, which only padding uses, repeat CLIP's last one.
    """
    encoder = build_diffusion(DIFFUSION).text_encoder
    tensors = {name: value for name, value in clip.state_dict().items() if name != "text_projection"}
    positions = tensors["positional_embedding"]
    tensors["positional_embedding"] = positions[torch.arange(TOKENS).clamp(max=len(positions) - 1)]
    renamed = convert_open_clip_checkpoint(encoder, tensors, prefix="")
    tensors = {name.removeprefix("text_model."): value for name, value in renamed.items()}
    load_exactly(encoder, tensors, "CLIP's text encoder")
    return encoder.requires_grad_(False)


def diffusion_batch(
    latents: Tensor, captions: Sequence[Captions], size: int, random: np.random.Generator, number: int
) -> Batch:
    """``latents``, ``tokens`` of one caption each or of the empty text, ``noise`` and diffusion ``steps``.

    The number of the batch is ignored.
    """
    indices = random.integers(len(latents), size=size)
    texts = ["" if random.random() < _NO_CAPTION else pick(captions[index], random) for index in indices]
    values = latents[torch.from_numpy(indices)].float()
    return {
        "latents": values,
        "tokens": tokenize(texts, DIFFUSION.text_pad, DIFFUSION.text_vocabulary),
        "noise": torch.from_numpy(random.standard_normal(values.shape, np.float32)),
        "steps": torch.from_numpy(random.integers(0, STEPS, size)),
    }


class Denoiser(nn.Module):
    """Loss of the UNet and its text encoder, which is usually frozen (arXiv 2112.10752).

    Errors are weighted by the signal-to-noise ratio of their step, at most 5 (arXiv 2303.09556), for faster
    learning.
    """

    alphas_cumprod: Tensor

    def __init__(self, unet: Any, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.register_buffer("alphas_cumprod", noise_schedule().float(), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Squared error of the noise predicted from a noisy latent."""
        signal = self.alphas_cumprod[batch["steps"]].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * batch["latents"] + (1 - signal).sqrt() * batch["noise"]
        context = self.text_encoder(batch["tokens"]).last_hidden_state
        predicted = self.unet(noisy, batch["steps"], context).sample
        error = (predicted - batch["noise"]).square().mean((1, 2, 3))
        ratio = (signal / (1 - signal)).flatten()
        return (error * (_SNR_LIMIT / ratio).clamp(max=1)).mean()
