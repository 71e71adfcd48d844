"""Pre-train the small world's frozen models.

Each is trained from scratch on captioned pictures of the whole world with its novel categories, as CLIP and
Stable Diffusion are on the web. The moving average of the weights is written in half precision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from odise_pl.models.backbones.clip import build_clip, load_clip
from odise_pl.models.backbones.stable_diffusion import build_diffusion, load_network
from scripts.pretrain_toyworld.autoencoder import Autoencoder, picture_batch, start_linear, unit_scale
from scripts.pretrain_toyworld.clip import ContrastiveModel, clip_batch
from scripts.pretrain_toyworld.corpus import Corpus, paint_corpus
from scripts.pretrain_toyworld.models import CLIP, CLIP_FILE, DIFFUSION, DIFFUSION_FOLDER, require
from scripts.pretrain_toyworld.schedule import Draws, Schedule
from scripts.pretrain_toyworld.unet import Denoiser, diffusion_batch, encode_views, text_encoder_of

_SEED = 0  # of weights and batches
_SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one model."""

    pictures: int  # of the corpus
    steps: int  # optimizer steps
    batch: int  # pictures per step
    lr: float  # highest learning rate
    cycles: int  # of the cosine schedule
    decay: float  # of the moving average of the weights


RECIPES = {
    "clip": Recipe(pictures=24_000, steps=18_000, batch=96, lr=1e-3, cycles=3, decay=0.995),
    "vae": Recipe(pictures=24_000, steps=10_000, batch=8, lr=1.5e-3, cycles=1, decay=0.995),
    "unet": Recipe(pictures=12_000, steps=7_500, batch=64, lr=1e-3, cycles=2, decay=0.998),
}


def pretrain(
    model: str,
    recipe: Recipe,
    out: Path,
    work: Path,
    accelerator: str = "auto",
    precision: str = "32-true",
    workers: int = 2,
) -> None:
    """Train one model and write its weights; resumes from the last checkpoint in ``work/MODEL``.

    Args:
        model: ``clip``, ``vae``, or ``unet``, which needs the other two in ``out``.
        recipe: one of :data:`RECIPES`.
        out: folder of the weights, which are overwritten.
        work: folder of checkpoints and logs.
        accelerator: Lightning's: ``auto``, ``cpu`` or ``gpu``.
        precision: Lightning's. bf16-mixed is faster only on processors that support it.
        workers: processes that paint the corpus.

    Raises:
        WeightsError: weights that the UNet needs are missing.
    """
    if model == "unet":
        require(out, CLIP_FILE, f"{DIFFUSION_FOLDER}/vae")
    lightning.seed_everything(_SEED, verbose=False)
    corpus = paint_corpus(recipe.pictures, workers)
    module, make = _build(model, recipe, corpus, out)
    _fit(module, make, recipe, work / model, accelerator, precision)
    if isinstance(module, Autoencoder):
        module.model.register_to_config(scaling_factor=unit_scale(module.model, corpus))
    _write(module, out)


def _build(model: str, recipe: Recipe, corpus: Corpus, out: Path) -> tuple[Any, Callable[..., Any]]:
    """The module to train, and the function that makes its batches."""
    schedule = Schedule(recipe.steps, recipe.lr, recipe.cycles)
    if model == "clip":
        return ContrastiveModel(build_clip(CLIP), schedule), partial(clip_batch, corpus, recipe.steps)
    models = build_diffusion(DIFFUSION)
    if model == "vae":
        return Autoencoder(start_linear(models.vae), schedule), partial(picture_batch, corpus)
    clip = load_clip(str(out / CLIP_FILE), CLIP)
    latents = encode_views(load_network("vae", str(out / DIFFUSION_FOLDER)), corpus)
    return Denoiser(models.unet, text_encoder_of(clip), schedule), partial(diffusion_batch, latents)


def _fit(
    module: Any, make: Callable[..., Any], recipe: Recipe, folder: Path, accelerator: str, precision: str
) -> None:
    last = folder / "last.ckpt"
    done = torch.load(last, weights_only=True, mmap=True)["global_step"] if last.exists() else 0
    draws = Draws(partial(make, recipe.batch), _SEED, first=done)
    trainer = lightning.Trainer(
        max_steps=recipe.steps,
        accelerator=accelerator,
        precision=precision,  # type: ignore[arg-type]  # Lightning reports a wrong one
        devices=1,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[
            EMAWeightAveraging(decay=recipe.decay),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=_SAVE_EVERY),
        ],
        log_every_n_steps=20,
        gradient_clip_val=1.0,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    loader = DataLoader(draws, batch_size=None)
    trainer.fit(module, loader, ckpt_path=last if done else None, weights_only=True)


def _write(module: Any, out: Path) -> None:
    """Write the trained weights in half precision."""
    (out / DIFFUSION_FOLDER).mkdir(parents=True, exist_ok=True)
    if isinstance(module, ContrastiveModel):
        tensors = {name: value.half().contiguous() for name, value in module.model.state_dict().items()}
        save_file(tensors, out / CLIP_FILE)
    elif isinstance(module, Autoencoder):
        module.model.half().save_pretrained(out / DIFFUSION_FOLDER / "vae")
    else:
        module.unet.half().save_pretrained(out / DIFFUSION_FOLDER / "unet")
        module.text_encoder.half().save_pretrained(out / DIFFUSION_FOLDER / "text_encoder")
