"""The quality of the small world's frozen networks on held-out pictures.

* ``clip``: accuracy on crops of things, among all categories; and of masked CLIP on true masks;
* ``clip_conv``: accuracy on the same crops;
* ``autoencoder``: peak signal-to-noise ratio of reconstructions, in decibels;
* ``unet``: how often CLIP recognises the prompted thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.models.backbones.diffusion_weights import load_diffusion, load_network
from odise_pl.models.backbones.stable_diffusion import DiffusionModels
from odise_pl.models.backbones.text_encoders import encode_prompts
from odise_pl.models.classifiers.regions import visible_patches
from odise_pl.toyworld.scene import Placed, Scene, paint_scene
from odise_pl.toyworld.stuff import STUFF
from odise_pl.toyworld.style import OPEN
from odise_pl.toyworld.things import THINGS, Thing
from scripts.pretrain_toyworld.corpus import SIDE, WEB, Pixels, enlarge
from scripts.pretrain_toyworld.networks import (
    CLIP,
    CLIP_FILE,
    CONV_CLIP,
    CONV_CLIP_FILE,
    DIFFUSION,
    DIFFUSION_FOLDER,
)
from scripts.pretrain_toyworld.training import pixels

_SEED = 1234  # of the held-out pictures
_PROMPT = "a photo of a {}"
_MARGIN = 0.1  # around a thing in a crop, relative to its size
_OTHERS = 0.4  # largest share of a crop that other things may cover
_GUIDANCE = 7.5  # the default of Stable Diffusion
NAMES = tuple(kind.name for kind in (*THINGS, *STUFF))


def yield_grades(
    networks: Sequence[str],
    weights: Path,
    count: int = 500,
    each: int = 6,
    steps: int = 50,
    sheet: Path | None = None,
) -> Iterator[str]:
    """Yield one line per grade.

    Args:
        networks: of ``clip``, ``clip_conv``, ``autoencoder`` and ``unet``.
        weights: folder of the weights.
        count: held-out crops, and pictures.
        each: samples of the UNet for each thing.
        steps: of sampling.
        sheet: picture file for two samples of each thing.

    Raises:
        WeightsError: weights are missing or damaged.
    """
    diffusion = str(weights / DIFFUSION_FOLDER)
    if "clip" in networks or "unet" in networks:
        clip = FrozenCLIP(load_clip(str(weights / CLIP_FILE), CLIP))
    if "clip" in networks:
        yield f"clip: {100 * grade_crops(clip, count):.1f} % of {count} held-out crops are named"
        things, stuff = (100 * share for share in grade_masks(clip, count))
        yield f"clip: {things:.1f} % of things and {stuff:.1f} % of stuff are named by true masks"
    if "clip_conv" in networks:
        own = FrozenCLIP(load_clip(str(weights / CONV_CLIP_FILE), CONV_CLIP))
        yield f"clip_conv: {100 * grade_crops(own, count):.1f} % of {count} held-out crops are named"
    if "autoencoder" in networks:
        ratio = grade_autoencoder(load_network("vae", diffusion).eval(), count)
        yield f"autoencoder: {ratio:.2f} dB on {count} held-out pictures"
    if "unet" in networks:
        share, samples = grade_unet(load_diffusion(diffusion, DIFFUSION), clip, each, steps)
        if sheet is not None:
            save_image([*samples[::each], *samples[1::each]], sheet, nrow=len(THINGS), padding=0)
        yield f"unet: {100 * share:.1f} % of {len(samples)} samples are recognised"


def crops(count: int) -> Iterator[tuple[Pixels, Thing]]:
    """Crops around single things of painted scenes, half of them in the style of the open set."""
    random = np.random.default_rng(_SEED)
    found = 0
    while True:
        scene = paint_scene(random, OPEN if random.random() < 0.5 else WEB)
        for placed in scene.things:
            if _is_clear(scene, placed):
                yield _cut(scene, placed), placed.thing
                found += 1
                if found == count:
                    return


def _is_clear(scene: Scene, placed: Placed) -> bool:
    """Whether other things cover only a little of the box."""
    left, top, right, bottom = (round(max(0, side)) for side in placed.box)
    inside = scene.ids[top:bottom, left:right]
    others = [other.id for other in scene.things if other.id != placed.id]
    return bool(np.isin(inside, others).mean() < _OTHERS)


def _cut(scene: Scene, placed: Placed) -> Pixels:
    left, top, right, bottom = placed.box
    (height, width), x, y = scene.ids.shape, _MARGIN * (right - left), _MARGIN * (bottom - top)
    box = (max(0, left - x), max(0, top - y), min(width, right + x), min(height, bottom + y))
    return enlarge(scene.image, box)


@torch.no_grad()
def classify(clip: FrozenCLIP, images: Tensor) -> list[str]:
    """CLIP's category of each image [N, 3, SIDE, SIDE] in 0..1."""
    return _nearest(torch.cat([clip.encode_image(part) for part in images.split(64)]), _texts(clip))


def _texts(clip: FrozenCLIP) -> Tensor:
    return F.normalize(clip.encode_text([_PROMPT.format(name) for name in NAMES]), dim=-1)


def _nearest(images: Tensor, texts: Tensor) -> list[str]:
    return [NAMES[i] for i in (images @ texts.T).argmax(1).tolist()]


def grade_crops(clip: FrozenCLIP, count: int) -> float:
    """Share of held-out crops that CLIP names correctly, among things and stuff."""
    pictures, things = zip(*crops(count), strict=True)
    found = classify(clip, pixels(list(pictures)))
    return float(np.mean([name == thing.name for name, thing in zip(found, things, strict=True)]))


@torch.no_grad()
def grade_masks(clip: FrozenCLIP, count: int) -> tuple[float, float]:
    """Shares of things and stuff in ``count`` held-out pictures that masked CLIP names correctly."""
    texts = _texts(clip)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for scene in scenes(count):
        ids = torch.from_numpy(scene.ids[:SIDE, :SIDE])
        segments = [(placed.id, placed.thing.name, True) for placed in scene.things]
        segments += [(id, stuff.name, False) for id, stuff in scene.stuff]
        segments = [one for one in segments if (ids == one[0]).any()]
        logits = torch.stack([ids == id for id, _, _ in segments]).float()[None] * 20 - 10
        found = clip.encode_masks(clip.normalize(square(scene)), visible_patches(logits, clip.patch_size))[0]
        for name, (_, truth, thing) in zip(_nearest(found, texts), segments, strict=True):
            right[thing].append(name == truth)
    return float(np.mean(right[True])), float(np.mean(right[False]))


@torch.no_grad()
def grade_autoencoder(vae: Any, count: int) -> float:
    """Mean peak signal-to-noise ratio in decibels of held-out pictures."""
    ratios = []
    for scene in scenes(count):
        image = square(scene)
        restored = vae.decode(vae.encode(2 * image - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        ratios.append(-10 * torch.log10(F.mse_loss(restored, image)))
    return float(torch.stack(ratios).mean())


def scenes(count: int, seed: int = _SEED) -> Iterator[Scene]:
    """Held-out scenes, every second one in the style of the open set."""
    random = np.random.default_rng(seed)
    return (paint_scene(random, OPEN if number % 2 else WEB) for number in range(count))


def square(scene: Scene) -> Tensor:
    """[1, 3, SIDE, SIDE] in 0..1."""
    return pixels([scene.image[:SIDE, :SIDE]])


def grade_unet(
    models: DiffusionModels, clip: FrozenCLIP, each: int, steps: int
) -> tuple[float, list[Tensor]]:
    """Share of samples that CLIP names correctly, and all samples [3, SIDE, SIDE], ``each`` per thing."""
    samples: list[Tensor] = []
    right = 0
    for thing in THINGS:
        prompts = [f"a photo of a {thing.colours[i % len(thing.colours)]} {thing.name}" for i in range(each)]
        images = sample(models, prompts, steps)
        right += classify(clip, images).count(thing.name)
        samples += images
    return right / len(samples), samples


@torch.no_grad()
def sample(models: DiffusionModels, prompts: Sequence[str], steps: int) -> Tensor:
    """Draw pictures [N, 3, SIDE, SIDE] in 0..1 by DDIM (arXiv 2010.02502) with classifier-free guidance."""
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    context = encode_prompts(models.text_encoder, [*prompts, *[""] * len(prompts)], DIFFUSION.text_pad)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), DIFFUSION.latent_channels, SIDE // 8, SIDE // 8, generator=generator)
    for step in scheduler.timesteps:
        asked, free = models.unet(torch.cat([latents, latents]), step, context).sample.chunk(2)
        latents = scheduler.step(free + _GUIDANCE * (asked - free), step, latents).prev_sample
    decoded: Tensor = models.vae.decode(latents / models.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)
