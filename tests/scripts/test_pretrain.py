"""Pre-training of the small world's frozen models."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from odise_pl.models.backbones.clip import FrozenCLIP, build_clip, load_clip
from odise_pl.models.backbones.stable_diffusion import encode_prompts, load_diffusion
from odise_pl.models.backbones.tokens import tokenize
from odise_pl.models.weights import WeightsError
from odise_pl.runs.conf import compose_config
from scripts.pretrain_toyworld import run
from scripts.pretrain_toyworld.clip import ContrastiveModel, clip_batch
from scripts.pretrain_toyworld.corpus import Corpus, paint_corpus
from scripts.pretrain_toyworld.models import CLIP, DIFFUSION, VOCABULARY
from scripts.pretrain_toyworld.regions import regions_batch
from scripts.pretrain_toyworld.schedule import Draws, Schedule
from scripts.pretrain_toyworld.unet import text_encoder_of


def pretrain(model: str, folder: Path, steps: int) -> Path:
    recipe = replace(run.RECIPES[model], steps=steps, pictures=12, batch=2)
    run.pretrain(model, recipe, folder / "weights", folder / "work", "cpu", workers=1)
    return folder / "weights"


@pytest.mark.slow
def test_written_weights_load(tmp_path: Path) -> None:
    for model in ("clip", "vae", "unet"):
        weights = pretrain(model, tmp_path, 2)
    clip = FrozenCLIP(load_clip(str(weights / "clip.safetensors"), CLIP))
    models = load_diffusion(str(weights / "diffusion"))
    assert clip.encode_text(["a red ball"]).shape == (1, CLIP.embed_dim)
    assert models.text_encoder.config.vocab_size == DIFFUSION.text_vocabulary
    # the noise schedule expects latents of unit variance
    assert models.vae.config.scaling_factor != pytest.approx(0.18215)


@pytest.mark.slow
def test_resumed_run_gives_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_SAVE_EVERY", 1)
    file = Path("diffusion", "vae", "diffusion_pytorch_model.safetensors")
    whole = pretrain("vae", tmp_path / "whole", 3) / file

    def stop(self: lightning.LightningModule, batch: object, batch_idx: int) -> None:
        if self.global_step == 2:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(run.Autoencoder, "on_train_batch_start", stop)
        with pytest.raises(ZeroDivisionError):
            pretrain("vae", tmp_path / "stopped", 3)
    assert not (tmp_path / "stopped" / "weights").exists()
    assert (pretrain("vae", tmp_path / "stopped", 3) / file).read_bytes() == whole.read_bytes()


def test_unet_needs_the_other_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"clip\.safetensors"):
        pretrain("unet", tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_conf_has_the_same_architectures() -> None:
    config = compose_config("train", ["experiment=toy", "run_dir=."])
    assert instantiate(config.clip.architecture) == CLIP
    assert instantiate(config.backbone.architecture, _convert_="all") == replace(
        DIFFUSION,
        unet_channels=list(DIFFUSION.unet_channels),
        vae_channels=list(DIFFUSION.vae_channels),
    )


def test_learning_rate_falls_to_zero_in_each_cycle() -> None:
    factors = [Schedule(40, 1.0, cycles=2, warmup=1).factor(step) for step in range(41)]
    assert factors[0] == factors[20] == 1
    assert factors[19] < 0.01
    assert factors[40] == 0
    assert factors[:20] == sorted(factors[:20], reverse=True)
    assert factors[20:40] == pytest.approx(factors[:20])


def test_text_encoder_is_frozen_in_the_second_third() -> None:
    module = ContrastiveModel(build_clip(CLIP), Schedule(6, 1e-3, cycles=3, warmup=1))
    states = []
    watch = LambdaCallback(
        on_train_batch_end=lambda *_: states.append(
            {name: p.clone() for name, p in module.model.named_parameters()}
        )
    )
    draws = Draws(partial(clip_batch, paint_corpus(12, workers=1), 6, 3), seed=0)
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, callbacks=[watch], enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(draws, batch_size=None))
    changed = [
        {name for name in now if not torch.equal(now[name], before[name])}
        for before, now in itertools.pairwise(states)
    ]
    text = {name for name in states[0] if not name.startswith(("visual.", "logit_scale"))}
    assert text <= changed[0]
    assert not text & (changed[1] | changed[2])
    assert all("visual.proj" in names for names in changed)
    assert text <= changed[4]


def test_picture_without_details_has_no_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.pretrain_toyworld.regions._MOSAICS", 0.0)
    plain = Corpus(np.zeros((1, 128, 128, 3), np.uint8), [["sky"]], [[]])
    batch = regions_batch(plain, 8, np.random.default_rng(0))
    assert not batch["visible"].any()
    assert len(batch["tokens"]) == len(batch["images"]) == 2
    loss = ContrastiveModel(build_clip(CLIP), Schedule(4, 1e-3)).training_step(batch, 0)
    assert loss.isfinite()


def test_text_encoder_of_diffusion_equals_clip() -> None:
    clip = build_clip(CLIP).eval()
    encoder = text_encoder_of(clip)
    texts = ["a photo of a red pineapple on the grass", "a cat"]
    with torch.no_grad():
        end = (tokenize(texts, VOCABULARY, 77, DIFFUSION.text_pad) == VOCABULARY - 1).int().argmax(1)
        ours = encode_prompts(encoder, texts, DIFFUSION.text_pad)[range(2), end] @ clip.text_projection
        expected = clip.encode_text(tokenize(texts, VOCABULARY, CLIP.text_length))
    torch.testing.assert_close(ours, expected)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
