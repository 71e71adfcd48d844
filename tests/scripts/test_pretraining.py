"""Pre-training of the small world's frozen networks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP, build_clip, load_clip
from odise_pl.models.backbones.diffusion_weights import load_diffusion
from odise_pl.models.backbones.text_encoders import encode_prompts
from odise_pl.models.backbones.tokens import tokenize
from odise_pl.models.weights import WeightsError
from odise_pl.toyworld.make import KINDS
from scripts.pretrain_toyworld import autoencoder, clip, clip_batches, diffusion, training
from scripts.pretrain_toyworld.clip_batches import PATCHES, View, clip_batch, mosaic, regions_batch
from scripts.pretrain_toyworld.corpus import Corpus, Detail, Picture, enlarge, paint_corpus
from scripts.pretrain_toyworld.networks import (
    CLIP,
    CLIP_FILE,
    CONV_CLIP,
    CONV_CLIP_FILE,
    DIFFUSION,
    MEMBERS,
    WEIGHTS,
)
from scripts.pretrain_toyworld.training import Batch, Recipe, train


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return paint_corpus(24, workers=1)


def test_captions_of_details_name_their_category(corpus: Corpus) -> None:
    names = {name for kind in KINDS for name in (kind.name, getattr(kind, "many", kind.name), *kind.synonyms)}
    for detail in (detail for picture in corpus for detail in picture.details):
        left, top, right, bottom = detail.box
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 128
        assert all(any(name in caption.lower() for name in names) for caption in detail.captions)


def test_clip_batches_change_with_each_third(corpus: Corpus) -> None:
    easy, details, parts = (clip_batch(corpus, 12, 80, np.random.default_rng(0), n) for n in (3, 4, 8))
    assert easy["images"].shape == details["images"].shape == (80, 3, 128, 128)
    assert all(len(chosen.unique()) == PATCHES for chosen in easy["patches"]), "patches of a whole image"
    assert any(len(chosen.unique()) < PATCHES for chosen in details["patches"]), "a few, of a detail"
    seen = int(parts["visible"].any(2).sum())
    assert len(parts["images"]) == 20
    assert seen > 50
    assert 0 < parts["captioned"].sum() < 20, "mosaics have no caption"
    assert len(parts["tokens"]) == parts["captioned"].sum() + seen
    again = clip_batch(corpus, 12, 80, np.random.default_rng(0), 8)
    assert all(torch.equal(parts[name], again[name]) for name in parts)


def test_visible_patches_are_inside_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[64:96, 32:64] = 255
    one = [Picture(image, ["all"], [Detail((32, 64, 64, 96), ["part"], True)], [])]
    monkeypatch.setattr(clip_batches, "_MOSAICS", 0.0)
    shares = set()
    for number in range(40):
        batch = regions_batch(one, 4, np.random.default_rng(number))
        assert len(batch["tokens"]) == 2
        ((patches,),) = batch["visible"]
        tiles = batch["images"][0].mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
        assert patches.any()
        assert (tiles[patches] > 0).all(), "no patch outside the part"
        shares.add(round(float(patches.float().mean()), 2))
        whole = torch.equal(batch["tokens"][0], tokenize(["all"], CLIP.text_vocabulary, CLIP.text_length)[0])
        assert whole == (tiles.mean().item() == pytest.approx(1 / 16))
    assert min(shares) < 0.05 < 0.2 < max(shares), "in the picture and enlarged"


def test_mosaic_keeps_views_and_their_parts() -> None:
    part = (0, 32, 3, 128)
    views = [View(np.full((128, 128, 3), n, np.uint8), f"view {n}", [(part, f"part {n}")]) for n in range(4)]
    whole = mosaic(views)
    assert len(whole.parts) == 8
    for (left, top, right, bottom), caption in whole.parts:
        shown = whole.image[top:bottom, left:right]
        assert (shown == int(caption[-1])).all()
        assert shown.shape == ((64, 64, 3) if caption.startswith("view") else (48, 2, 3))


@pytest.mark.parametrize("box", [(0, 0, 10, 40), (100, 60, 128, 90), (10, 20, 120, 128)])
def test_details_are_shown_with_their_surroundings(box: tuple[int, int, int, int]) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    shown = enlarge(image, diffusion.square_around(box))
    side = min(128, round(1.2 * max(right - left, bottom - top)))
    share = (right - left) * (bottom - top) / side**2
    assert shown.mean() / 255 == pytest.approx(share, abs=0.05)


def test_convolutional_clip_shares_the_texts_of_clip(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS / CLIP_FILE, tmp_path)
    (tmp_path / MEMBERS).mkdir()
    clip.pretrain_convolutional(Recipe(pictures=3, steps=2, batch=4, lr=1e-3), tmp_path, tmp_path)
    own = FrozenCLIP(load_clip(str(tmp_path / CONV_CLIP_FILE), CONV_CLIP))
    shipped = FrozenCLIP(load_clip(str(WEIGHTS / CLIP_FILE), CLIP))
    torch.testing.assert_close(own.encode_text(["a ball"]), shipped.encode_text(["a ball"]))
    torch.manual_seed(0)
    start = build_clip(CONV_CLIP).visual.state_dict()
    learned = own.model.visual.state_dict()
    assert any(not torch.equal(learned[name], value.half().float()) for name, value in start.items())
    assert own.maps(torch.rand(1, 3, 128, 128))[-1].shape == (1, 256, 4, 4)


def test_text_encoder_of_diffusion_equals_clip() -> None:
    network = build_clip(CLIP).eval()
    encoder = diffusion.text_encoder_of(network)
    texts, size = ["a photo of a red pineapple on the grass", "a cat"], CLIP.text_vocabulary
    with torch.no_grad():
        end = (tokenize(texts, size, 77, DIFFUSION.text_pad) == size - 1).int().argmax(1)
        ours = encode_prompts(encoder, texts, DIFFUSION.text_pad)[range(2), end] @ network.text_projection
        expected = network.encode_text(tokenize(texts, size, CLIP.text_length))
    torch.testing.assert_close(ours, expected)


def test_text_encoder_is_frozen_in_the_second_third(corpus: Corpus) -> None:
    for number in range(3):
        task = clip.Contrast(build_clip(CLIP))
        task(clip_batch(corpus, 3, 4, np.random.default_rng(0), number)).backward()
        learns = {name for name, p in task.clip.named_parameters() if p.grad is not None}
        assert "visual.proj" in learns
        assert ("text_projection" in learns) == ("token_embedding.weight" in learns) == (number != 1)


class Line(nn.Module):
    """Squared error of a line; fails at the given call."""

    def __init__(self, fails: int = 100) -> None:
        super().__init__()
        self.line, self.calls = nn.Linear(2, 1), fails

    def forward(self, batch: Batch) -> Tensor:
        self.calls -= 1
        if not self.calls:
            raise KeyboardInterrupt
        return self.line(batch["points"]).square().mean()


def test_resumed_training_gives_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_SAVE_EVERY", 4)

    def fit(name: str, fails: int = 100, lr: float = 0.1) -> dict[str, Tensor]:
        torch.manual_seed(0)
        recipe = Recipe(pictures=0, steps=14, batch=0, lr=lr, cycles=2)
        batch = lambda random, number: {"points": torch.from_numpy(random.random((3, 2), np.float32))}  # noqa: E731
        return train(Line(fails), batch, recipe, tmp_path / name).state_dict()

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", fails=11)
    with pytest.raises(SettingError, match="stopped is of another recipe"):
        fit("stopped", lr=0.2)
    resumed = fit("stopped")
    torch.manual_seed(0)
    start = Line().state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any(torch.equal(whole[name], start[name]) for name in whole)


@pytest.mark.slow
def test_written_weights_load(tmp_path: Path) -> None:
    weights = tmp_path / "diffusion"
    weights.mkdir()
    with pytest.raises(WeightsError, match=r"clip\.safetensors"):
        diffusion.pretrain(diffusion.RECIPE, tmp_path, tmp_path)
    for network in (clip, autoencoder, diffusion):
        recipe = replace(network.RECIPE, steps=3, pictures=12, batch=2)
        network.pretrain(recipe, tmp_path, tmp_path)
    loaded = FrozenCLIP(load_clip(str(tmp_path / "clip.safetensors"), CLIP))
    models = load_diffusion(str(weights), DIFFUSION)
    assert loaded.encode_text(["a red ball"]).shape == (1, CLIP.embed_dim)
    assert models.text_encoder.config.vocab_size == DIFFUSION.text_vocabulary
    # the noise schedule expects latents of unit variance
    assert models.vae.config.scaling_factor != pytest.approx(0.18215)
