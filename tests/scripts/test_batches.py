"""Batches of the pre-training of the small world's frozen models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odise_pl.models.backbones.stable_diffusion import build_diffusion
from odise_pl.models.backbones.stable_diffusion import tokenize as tokenize_padded
from odise_pl.models.backbones.tokens import tokenize
from odise_pl.toyworld.make import KINDS
from scripts.pretrain_toyworld import regions, unet
from scripts.pretrain_toyworld.clip import PATCHES, clip_batch
from scripts.pretrain_toyworld.corpus import Corpus, Detail, paint_corpus
from scripts.pretrain_toyworld.models import CLIP, DIFFUSION, VOCABULARY
from scripts.pretrain_toyworld.regions import View, mosaic, regions_batch
from scripts.pretrain_toyworld.schedule import pixels
from scripts.pretrain_toyworld.unet import (
    HALF_SIZE,
    Latents,
    diffusion_batch,
    encode_views,
    enlarge,
    views,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return paint_corpus(24, workers=1)


def test_captions_of_details_name_their_category(corpus: Corpus) -> None:
    names = {name for kind in KINDS for name in (kind.name, getattr(kind, "many", kind.name), *kind.synonyms)}
    assert len(corpus) == 24
    for detail in (detail for details in corpus.details for detail in details):
        left, top, right, bottom = detail.box
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 128
        assert all(any(name in caption.lower() for name in names) for caption in detail.captions)


def test_batches_are_reproducible(corpus: Corpus) -> None:
    one, two = (clip_batch(corpus, 10, 4, np.random.default_rng([0, 5]), 5) for _ in range(2))
    assert one["images"].shape == (4, 3, 128, 128)
    assert one["patches"].shape == (4, PATCHES)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_clip_batches_change_with_each_third(corpus: Corpus) -> None:
    random = np.random.default_rng(0)
    easy, details, parts = (clip_batch(corpus, 12, 80, random, number) for number in (3, 4, 8))
    assert all(len(chosen.unique()) == PATCHES for chosen in easy["patches"]), "patches of a whole image"
    assert any(len(chosen.unique()) < PATCHES for chosen in details["patches"]), "a few, of a detail"
    seen = int(parts["visible"].any(2).sum())
    assert len(parts["images"]) == 20
    assert seen > 50
    assert 0 < parts["captioned"].sum() < 20, "mosaics have no caption"
    assert len(parts["tokens"]) == parts["captioned"].sum() + seen


def test_pictures_with_sided_captions_are_not_mirrored() -> None:
    values = torch.stack([torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)], dim=1)
    sided = Latents(values, values[..., ::2, ::2], [["a cat to the left of a cup"]])
    free = Latents(values, values[..., ::2, ::2], [["a cat and a cup"]])
    random = np.random.default_rng(0)
    kept = diffusion_batch(sided, 64, random, HALF_SIZE)
    named = (kept["tokens"] != tokenize_padded([""], DIFFUSION.text_pad, VOCABULARY)).any(1)
    assert 32 < named.sum() < 64, "some have no caption"
    assert (kept["latents"][named] == 0).all()
    assert kept["latents"][~named].unique().tolist() == [0, 1]
    assert diffusion_batch(free, 64, random, HALF_SIZE)["latents"].unique().tolist() == [0, 1]
    sizes = [diffusion_batch(free, 2, random, n)["latents"].shape[-1] for n in (0, HALF_SIZE - 1, HALF_SIZE)]
    assert sizes == [2, 2, 4], "the first batches are of half the size"


@pytest.mark.parametrize("box", [(0, 0, 10, 40), (100, 60, 128, 90), (10, 20, 120, 128), (40, 40, 70, 60)])
def test_details_are_enlarged_with_their_surroundings(box: tuple[int, int, int, int]) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    shown = enlarge(image, box)
    assert shown.shape == image.shape
    side = min(128, round(1.2 * max(right - left, bottom - top)))
    share = (right - left) * (bottom - top) / side**2
    assert shown.mean() / 255 == pytest.approx(share, abs=0.05)


def test_views_are_pictures_and_at_most_two_details(corpus: Corpus) -> None:
    written = [captions for _, captions in views(corpus)]
    assert 2 * len(corpus) < len(written) <= 3 * len(corpus)
    assert all(captions in written for captions in corpus.captions)
    details = [detail.captions for details in corpus.details for detail in details]
    singles = [captions for captions in written if captions not in corpus.captions]
    assert all(captions in details for captions in singles)
    assert [captions for _, captions in views(corpus)] == written


def test_views_are_encoded_plain_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "_AT_ONCE", 4)
    pictures = paint_corpus(4, workers=1)
    every = list(views(pictures))
    vae = build_diffusion(DIFFUSION).vae
    vae.register_to_config(scaling_factor=2.0)
    latents = encode_views(vae, pictures)
    assert list(latents.captions) == [captions for _, captions in every]
    assert latents.half.shape == (len(every), 2, 16, 8, 8)
    assert len(latents.whole) == 4 < len(every)
    image = 2 * pixels([every[3][0]]) - 1
    with torch.no_grad():
        plain, mirrored = (2 * vae.encode(x).latent_dist.mean[0] for x in (image, image.flip(-1)))
    for found, expected in zip(latents.whole[3], (plain, mirrored), strict=True):
        assert (found - expected).std() < 0.001 * expected.std()


def test_visible_patches_are_inside_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((1, 128, 128, 3), np.uint8)
    image[0, 64:96, 32:64] = 255
    one = Corpus(image, [["all"]], [[Detail((32, 64, 64, 96), ["part"], True)]])
    monkeypatch.setattr(regions, "_MOSAICS", 0.0)
    shares = set()
    for number in range(40):
        batch = regions_batch(one, 4, np.random.default_rng(number))
        assert len(batch["tokens"]) == 2
        ((patches,),) = batch["visible"]
        tiles = batch["images"][0].mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
        assert patches.any()
        assert (tiles[patches] > 0).all(), "no patch outside the part"
        shares.add(round(float(patches.float().mean()), 2))
        whole = torch.equal(batch["tokens"][0], tokenize(["all"], VOCABULARY, CLIP.text_length)[0])
        assert whole == (tiles.mean().item() == pytest.approx(1 / 16))
    assert min(shares) < 0.05 < 0.2 < max(shares), "in the picture and enlarged"


def test_mosaic_keeps_views_and_their_parts() -> None:
    part = (0, 32, 3, 128)
    tiles = [View(torch.full((1, 3, 128, 128), n / 4), f"view {n}", [(part, f"part {n}")]) for n in range(3)]
    whole = mosaic([*tiles, View(torch.ones(1, 3, 128, 128), None, [])])
    assert whole.caption is None
    assert whole.image.shape == (1, 3, 128, 128)
    assert len(whole.parts) == 6
    for (left, top, right, bottom), caption in whole.parts:
        shown = whole.image[0, 0, top:bottom, left:right]
        assert (shown == int(caption[-1]) / 4).all()
        assert shown.shape == ((64, 64) if caption.startswith("view") else (48, 2))
