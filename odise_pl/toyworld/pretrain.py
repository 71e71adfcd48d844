"""Pre-train the small world's frozen models: ``python -m odise_pl.toyworld.pretrain clip|vae|unet``.

Each is trained from scratch on pictures with captions of the whole world, novel categories included, as CLIP
and Stable Diffusion are on the web. The same command again goes on where the last one stopped. At the end the
moving average of the weights is written in half precision, in the formats that the ordinary loaders read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from odise_pl.arguments import ends_with_message, not_negative, positive, seed
from odise_pl.errors import SettingError
from odise_pl.files import write_text
from odise_pl.models.backbones.clip import build_clip, load_clip
from odise_pl.models.backbones.stable_diffusion import DiffusionModels, build_diffusion, load_network
from odise_pl.models.weights import WeightsError
from odise_pl.toyworld.contrastive import ContrastiveModel, clip_batch
from odise_pl.toyworld.corpus import Corpus, paint_corpus
from odise_pl.toyworld.denoising import Denoiser, Latents, diffusion_batch, encode_views, text_encoder_of
from odise_pl.toyworld.pretraining import (
    Autoencoder,
    Draws,
    Schedule,
    picture_batch,
    pixels,
    start_linear,
)
from odise_pl.toyworld.shipped import WEIGHTS
from odise_pl.toyworld.sizes import CLIP, DIFFUSION

_STEPS = {"clip": 18000, "vae": 10000, "unet": 7500}
_CYCLES = {"clip": 3, "vae": 1, "unet": 2}
_BATCH = {"clip": 96, "vae": 8, "unet": 64}
_CHUNKS = {"clip": 48, "vae": 48, "unet": 24}  # of the corpus
_LR = {"clip": 1e-3, "vae": 1.5e-3, "unet": 1e-3}
_DECAY = {"clip": 0.995, "vae": 0.995, "unet": 0.998}


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    _pretrain(options)
    return 0


def _pretrain(options: argparse.Namespace) -> None:
    steps = options.steps or _STEPS[options.model]
    if options.first >= steps:
        raise SettingError(f"--first {options.first} must be less than --steps {steps}, which count from 0")
    _check_needed(options)
    _check_same(options)
    lightning.seed_everything(options.seed, verbose=False)
    chunks = options.chunks or _CHUNKS[options.model]
    corpus = paint_corpus(options.work / "pictures", chunks, options.workers)
    schedule = Schedule(steps, _LR[options.model], _CYCLES[options.model], options.first)
    clip, models = _models(options)
    if options.model == "clip":
        module: Any = ContrastiveModel(clip, schedule)
        make: Any = partial(clip_batch, corpus, steps)
    elif options.model == "vae":
        module = Autoencoder(models.vae if options.first else start_linear(models.vae), schedule)
        make = partial(picture_batch, corpus)
    else:
        module = Denoiser(models.unet, text_encoder_of(clip), schedule)
        make = partial(diffusion_batch, _latents(corpus, options))
    _fit(module, make, options)
    if isinstance(module, Autoencoder):
        module.model.register_to_config(scaling_factor=_unit_scale(module.model, corpus))
    _write(module, options.out)


def _check_needed(options: argparse.Namespace) -> None:
    """Before hours of work: whether the weights are there that this model learns with or goes on from."""
    if options.out.exists() and not options.out.is_dir():
        raise WeightsError(f"{options.out} is a file; --out names a folder")
    needed = {"unet": ["clip", "vae"]}.get(options.model, []) + ([options.model] if options.first else [])
    for model in needed:
        path = options.out / ("clip.safetensors" if model == "clip" else f"diffusion/{model}")
        if not path.exists():
            raise WeightsError(f"{path} is not there: pretrain {model} first, or name another --out")


def _check_same(options: argparse.Namespace) -> None:
    """Note what decides what is learned, or see that what was begun in this place goes on as it was.

    Begun is what has a checkpoint: one that stopped before that leaves nothing to go on from.
    """
    model = options.model
    now = {
        "steps": options.steps or _STEPS[model],
        "first": options.first,
        "chunks": options.chunks or _CHUNKS[model],
        "batch": options.batch or _BATCH[model],
        "seed": options.seed,
        "precision": options.precision,
    }
    note = options.work / model / "settings.json"
    begun = note.exists() and note.with_name("last.ckpt").exists()
    before = _noted(note) if begun else now
    changed = [f"--{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise SettingError(
            f"{note.parent} was begun with other settings ({', '.join(changed)}): delete it to begin anew, "
            f"or name another --work"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(now, indent=1))


def _noted(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingError(
            f"{note} is damaged ({error}): delete {note.parent} to begin anew, or name another --work"
        ) from error


def _models(options: argparse.Namespace) -> tuple[Any, DiffusionModels]:
    """CLIP and the diffusion model, with the weights there are of what is learned or read."""
    models = build_diffusion(DIFFUSION)
    if options.first and options.model != "clip":
        trained = load_network(options.model, str(options.out / "diffusion"))
        getattr(models, options.model).load_state_dict(trained.state_dict())
    if options.model == "unet" or (options.model == "clip" and options.first):
        return load_clip(str(options.out / "clip.safetensors"), CLIP), models
    return build_clip(CLIP), models


def _fit(module: Any, make: Any, options: argparse.Namespace) -> None:
    folder = options.work / options.model
    last = folder / "last.ckpt"
    done = _steps_done(last) if last.exists() else 0
    draws = Draws(partial(make, options.batch or _BATCH[options.model]), options.seed, options.first + done)
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise SettingError("--accelerator gpu: there is none; cpu and auto can do without")
    trainer = lightning.Trainer(
        max_steps=module.schedule.steps - module.schedule.first,
        accelerator=options.accelerator,
        precision=options.precision,
        devices=1,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[
            EMAWeightAveraging(decay=_DECAY[options.model]),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=options.save_every),
        ],
        log_every_n_steps=20,
        gradient_clip_val=1.0,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
    )
    trainer.fit(
        module, DataLoader(draws, batch_size=None), ckpt_path=last if done else None, weights_only=True
    )


def _steps_done(last: Path) -> int:
    try:
        return int(torch.load(last, weights_only=True, mmap=True)["global_step"])
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{last} is damaged ({error}): delete it to begin anew") from error


@torch.no_grad()
def _unit_scale(vae: Any, corpus: Corpus) -> float:
    """The factor that gives latents a standard deviation of one."""
    images = 2 * pixels([corpus.image(index) for index in range(min(200, len(corpus)))]) - 1
    return float(1 / vae.eval().encode(images).latent_dist.mean.std())


def _latents(corpus: Corpus, options: argparse.Namespace) -> Latents:
    """Latents of the corpus by the finished autoencoder; computed once for its weights."""
    folder = options.out / "diffusion" / "vae"
    known = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()
    path = options.work / f"views_{len(corpus)}_{known[:12]}.pt"
    if not path.exists():
        latents = encode_views(load_network("vae", str(folder.parent)), corpus)
        unfinished = path.with_suffix(".part")
        torch.save(vars(latents), unfinished)
        unfinished.replace(path)
    return Latents(**torch.load(path, weights_only=True, mmap=True))


def _write(module: Any, out: Path) -> None:
    """The trained weights, in half precision, where the ordinary loaders find them."""
    new = out / ".new"  # so that an interruption leaves no file half-written
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if isinstance(module, ContrastiveModel):
        tensors = {name: value.half().contiguous() for name, value in module.model.state_dict().items()}
        save_file(tensors, new / "clip.safetensors")
    elif isinstance(module, Autoencoder):
        module.model.half().save_pretrained(new / "diffusion" / "vae")
    else:
        module.unet.half().save_pretrained(new / "diffusion" / "unet")
        module.text_encoder.half().save_pretrained(new / "diffusion" / "text_encoder")
    for path in (path for path in new.rglob("*") if path.is_file()):
        target = out / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.pretrain", description=__doc__)
    parser.add_argument("model", choices=("clip", "vae", "unet"), help="unet needs the other two")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="of the weights; those there are replaced")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="corpus, checkpoints, logs")
    parser.add_argument("--chunks", type=positive, help="files of 500 pictures; by default 48, 24 for unet")
    parser.add_argument("--steps", type=positive, help="optimiser steps; by default about as shipped")
    parser.add_argument(
        "--first",
        type=not_negative,
        default=0,
        help="steps behind the weights in --out, to go on from them; with a --work of its own",
    )
    parser.add_argument("--batch", type=positive, help="pictures of a step; by default as shipped")
    parser.add_argument("--save-every", type=positive, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches, not of pictures")
    parser.add_argument("--workers", type=positive, default=2, help="processes that paint")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        default="32-true",
        help="bf16-mixed is faster where the processor knows it, and much slower elsewhere",
    )
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
