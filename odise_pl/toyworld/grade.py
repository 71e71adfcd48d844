"""Grade the small world's frozen models: ``python -m odise_pl.toyworld.grade [clip] [vae] [unet]``.

* ``clip``: how often it names the thing in a held-out crop, among all categories; and what is behind a true
  mask, as masked CLIP sees it;
* ``vae``: peak signal-to-noise ratio of restored held-out pictures, in decibels;
* ``unet``: how often CLIP recognises what a prompt of one thing asked to be drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from odise_pl.arguments import ends_with_message, positive
from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.models.backbones.stable_diffusion import (
    DiffusionModels,
    encode_prompts,
    load_diffusion,
    load_network,
)
from odise_pl.models.classifiers import visible_patches
from odise_pl.models.weights import WeightsError
from odise_pl.toyworld.corpus import SIDE
from odise_pl.toyworld.pretraining import pixels
from odise_pl.toyworld.scene import Placed, Scene, paint_scene
from odise_pl.toyworld.shipped import WEIGHTS
from odise_pl.toyworld.sizes import CLIP, DIFFUSION
from odise_pl.toyworld.stuff import STUFF
from odise_pl.toyworld.style import OPEN, WEB
from odise_pl.toyworld.things import THINGS, Thing

_MODELS = ("clip", "vae", "unet")
_SEED = 1234  # of what is painted here and nowhere else
_PROMPT = "a photo of a {}"
_MARGIN = 0.1  # around a thing in a crop, of its size
_VISIBLE = 0.6  # of a thing's box-filling size, for a crop that shows it
GUIDANCE = 7.5  # as is usual for Stable Diffusion
_COLOURS = 128  # of a sheet
_TIMESTEPS = 1000  # of the diffusion model
NAMES = tuple(kind.name for kind in (*THINGS, *STUFF))


def crops(count: int, seed: int = _SEED) -> Iterator[tuple[NDArray[np.uint8], Thing]]:
    """Crops around single things of painted scenes, half of them in the style of the open set."""
    random = np.random.default_rng(seed)
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
    """Whether no other thing covers a good part of the box."""
    left, top, right, bottom = (round(max(0, side)) for side in placed.box)
    inside = scene.ids[top:bottom, left:right]
    others = [other.id for other in scene.things if other.id != placed.id]
    return bool(np.isin(inside, others).mean() < 1 - _VISIBLE)


def _cut(scene: Scene, placed: Placed) -> NDArray[np.uint8]:
    left, top, right, bottom = placed.box
    x, y = _MARGIN * (right - left), _MARGIN * (bottom - top)
    box = (max(0, left - x), max(0, top - y), min(scene.image.shape[1], right + x),
           min(scene.image.shape[0], bottom + y))  # fmt: skip
    cut = Image.fromarray(scene.image).crop(tuple(round(side) for side in box))  # type: ignore[arg-type]
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@torch.no_grad()
def named(clip: FrozenCLIP, images: Tensor, names: Sequence[str] = NAMES) -> list[str]:
    """What CLIP calls each image [N, 3, SIDE, SIDE] in 0..1."""
    image = torch.cat([clip.encode_image(part) for part in images.split(64)])
    return _nearest(image, _texts(clip, names), names)


def _texts(clip: FrozenCLIP, names: Sequence[str]) -> Tensor:
    return F.normalize(clip.encode_text([_PROMPT.format(name) for name in names]), dim=-1)


def _nearest(images: Tensor, texts: Tensor, names: Sequence[str]) -> list[str]:
    return [names[i] for i in (images @ texts.T).argmax(1).tolist()]


def grade_clip(clip: FrozenCLIP, count: int) -> float:
    """Share of held-out crops whose thing is named, among things and stuff."""
    pictures, things = zip(*crops(count), strict=True)
    found = named(clip, pixels(list(pictures)))
    return float(np.mean([name == thing.name for name, thing in zip(found, things, strict=True)]))


@torch.no_grad()
def grade_masks(clip: FrozenCLIP, count: int) -> tuple[float, float]:
    """Shares of things and of stuff in ``count`` held-out pictures that masked CLIP names by true masks."""
    random, texts = np.random.default_rng(_SEED), _texts(clip, NAMES)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for number in range(count):
        scene = paint_scene(random, OPEN if number % 2 else WEB)
        ids = torch.from_numpy(scene.ids[:SIDE, :SIDE])
        segments = [(placed.id, placed.thing.name, True) for placed in scene.things]
        segments += [(id, stuff.name, False) for id, stuff in scene.stuff]
        segments = [one for one in segments if (ids == one[0]).any()]
        logits = torch.stack([ids == id for id, _, _ in segments]).float()[None] * 20 - 10
        image = clip.normalize(pixels([_square(scene)]))
        found = clip.encode_masks(image, visible_patches(logits, clip.patch_size))[0]
        for name, (_, truth, thing) in zip(_nearest(found, texts, NAMES), segments, strict=True):
            right[thing].append(name == truth)
    return float(np.mean(right[True])), float(np.mean(right[False]))


@torch.no_grad()
def grade_vae(vae: Any, count: int) -> float:
    """Mean peak signal-to-noise ratio in decibels of held-out pictures, half in the open set's style."""
    random = np.random.default_rng(_SEED)
    ratios = []
    for number in range(count):
        image = pixels([_square(paint_scene(random, OPEN if number % 2 else WEB))])
        restored = vae.decode(vae.encode(2 * image - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        ratios.append(-10 * torch.log10(F.mse_loss(restored, image)))
    return float(torch.stack(ratios).mean())


def _square(scene: Scene) -> NDArray[np.uint8]:
    return scene.image[:SIDE, :SIDE]


def grade_unet(
    models: DiffusionModels, clip: FrozenCLIP, each: int, steps: int
) -> tuple[float, list[tuple[str, Tensor]]]:
    """Share of samples that CLIP recognises, among things and stuff; and the samples with their prompts."""
    samples = []
    right = 0
    for thing in THINGS:
        prompts = [f"a photo of a {thing.colours[i % len(thing.colours)]} {thing.name}" for i in range(each)]
        images = sample(models, prompts, steps)
        right += sum(name == thing.name for name in named(clip, images))
        samples += list(zip(prompts, images, strict=True))
    return right / len(samples), samples


@torch.no_grad()
def sample(
    models: DiffusionModels,
    prompts: Sequence[str],
    steps: int = 50,
    guidance: float = GUIDANCE,
    seed: int = 0,
) -> Tensor:
    """Draw pictures [N, 3, SIDE, SIDE] in 0..1 by DDIM (arXiv 2010.02502) with classifier-free guidance."""
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    context = encode_prompts(models.text_encoder, [*prompts, *[""] * len(prompts)], DIFFUSION.text_pad)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), DIFFUSION.latent_channels, SIDE // 8, SIDE // 8, generator=generator)
    for step in scheduler.timesteps:
        asked, free = models.unet(torch.cat([latents, latents]), step, context).sample.chunk(2)
        latents = scheduler.step(free + guidance * (asked - free), step, latents).prev_sample
    decoded: Tensor = models.vae.decode(latents / models.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def sheet(samples: Sequence[tuple[str, Tensor]], columns: int = 13) -> Image.Image:
    """Samples side by side, row by row, in few colours: a small file."""
    tiles = [(image.permute(1, 2, 0) * 255).round().byte().numpy() for _, image in samples]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows)).quantize(_COLOURS)


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.grade", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="clip, vae, unet; by default all")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of what is graded")
    parser.add_argument("--count", type=positive, default=500, help="held-out crops, and pictures")
    parser.add_argument("--each", type=positive, default=6, help="samples of each thing")
    parser.add_argument("--steps", type=positive, default=50, help="of DDIM, 1000 at most")
    parser.add_argument("--sheet", type=Path, help="write the samples as a picture, FILE.png")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.models) - set(_MODELS))
    if unknown:
        parser.error(f"MODEL: there is no {unknown[0]}; choose from {', '.join(_MODELS)}")
    if options.steps > _TIMESTEPS:
        parser.error(f"--steps {options.steps}: the diffusion model has {_TIMESTEPS}")
    if options.sheet and not options.sheet.parent.is_dir():
        parser.error(f"--sheet {options.sheet}: there is no folder {options.sheet.parent}")
    if options.sheet and options.sheet.suffix != ".png":
        parser.error(f"--sheet {options.sheet}: names a picture, FILE.png")
    _grade(options.models or _MODELS, options)
    return 0


def _grade(wanted: Sequence[str], options: argparse.Namespace) -> None:
    """Load what is graded and no more: the other models may not have been trained yet."""
    _check_there(wanted, options.weights)
    diffusion = str(options.weights / "diffusion")
    clip = None
    if "clip" in wanted or "unet" in wanted:
        clip = FrozenCLIP(load_clip(str(options.weights / "clip.safetensors"), CLIP))
    if clip is not None and "clip" in wanted:
        share = 100 * grade_clip(clip, options.count)
        print(f"clip: {share:.1f} % of {options.count} held-out crops are named")
        things, stuff = (100 * share for share in grade_masks(clip, options.count))
        print(f"clip: {things:.1f} % of things and {stuff:.1f} % of stuff are named by true masks")
    if "vae" in wanted:
        ratio = grade_vae(load_network("vae", diffusion).eval(), options.count)
        print(f"vae: {ratio:.2f} dB on {options.count} held-out pictures")
    if clip is not None and "unet" in wanted:
        share, samples = grade_unet(load_diffusion(diffusion), clip, options.each, options.steps)
        print(f"unet: {100 * share:.1f} % of {len(samples)} samples are recognised")
        if options.sheet:
            shown = {0, options.each // 2}  # of each thing
            sheet([one for i, one in enumerate(samples) if i % options.each in shown]).save(options.sheet)


def _check_there(wanted: Sequence[str], weights: Path) -> None:
    """The loaders would name settings of train.py, or look for a hub."""
    needed = {
        "clip": ["clip.safetensors"],
        "vae": ["diffusion/vae"],
        "unet": ["clip.safetensors", "diffusion/vae", "diffusion/unet", "diffusion/text_encoder"],
    }
    for name in (name for model in wanted for name in needed[model]):
        if not (weights / name).exists():
            raise WeightsError(f"{weights / name} is not there; --weights names what pretrain wrote")


if __name__ == "__main__":
    sys.exit(main())
