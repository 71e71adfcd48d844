from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from odise_pl.errors import SettingError, UserError
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.prediction import kmeans
from odise_pl.prediction.kmeans import cluster, draw_beside, draw_clusters, resize_to_cells, tap_names
from odise_pl.runs.conf import compose_config

SMALL: dict[str, Any] = {"backbone": "tiny", "size": 64}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A wide image of two halves."""
    pixels = np.zeros((60, 130, 3), np.uint8)
    pixels[:, :65, 0], pixels[:, 65:, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_similar_cells_form_a_cluster() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 1, 2]])
    features = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1) * 10.0
    features += 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    labels = cluster(features, 3)
    assert (labels == truth.numpy()).all()  # the largest first
    assert (labels == cluster(features, 3)).all()


def test_too_many_clusters_are_named() -> None:
    with pytest.raises(SettingError, match=r"--clusters 13 .* 12"):
        cluster(torch.rand(2, 3, 4), 13)


def test_taps_and_cells_of_the_backbone() -> None:
    features = LatentDiffusionFeatures(tiny_models.diffusion(), (100,))
    expected = ["encoder.2", "encoder.3", *(f"unet.up.{i}" for i in range(4)), "decoder.0", "decoder.1"]
    assert tap_names(features) == expected
    image = Image.effect_noise((130, 60), 100).convert("RGB")
    pixels = torch.from_numpy(np.array(image.resize((128, 64), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    torch.testing.assert_close(resize_to_cells(image, 64, features.input_multiple), pixels[None] / 255)


def test_image_and_clusters_are_side_by_side() -> None:
    image = Image.new("RGB", (20, 10), (1, 2, 3))
    picture = draw_beside(image, np.array([[0, 1]], np.int32))
    assert picture.shape == (10, 48, 3)
    assert (picture[:, :20] == (1, 2, 3)).all()
    left, right = picture[:, 28:38].reshape(-1, 3), picture[:, 38:].reshape(-1, 3)
    assert len(np.unique(left, axis=0)) == len(np.unique(right, axis=0)) == 1
    assert (left[0] != right[0]).any()


def test_picture_is_written(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    options = {**SMALL, "clusters": 2, "timestep": 100, "tap": "encoder.3"}
    assert draw_clusters([photo], out, **options) == [out / "photo_kmeans.png"]
    picture = np.asarray(Image.open(out / "photo_kmeans.png"))
    assert picture.shape == (60, 130 * 2 + 8, 3)
    assert (picture[:, :130] == np.asarray(Image.open(photo))).all()
    assert len(np.unique(picture[:, 138:].reshape(-1, 3), axis=0)) == 2
    assert draw_clusters([photo], **options) == [tmp_path / "photo_kmeans.png"]
    assert (np.asarray(Image.open(tmp_path / "photo_kmeans.png")) == picture).all()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("tap", "unet.up.9", "unet.up.9"),
        ("backbone", "other", "--backbone other: .*tiny"),
        ("backbone", "two", r"--backbone two: (?!.*\btwo\b)"),
        ("backbone", "toy_groupvit", r"--backbone toy_groupvit: (?!.*groupvit)"),
        ("backbone", "mae_h", "odise weights fetch mae_h(.|\n)*--weights"),
        ("weights", "nowhere.ckpt", "nowhere.ckpt"),
    ],
)
def test_invalid_options_are_named(photo: Path, option: str, value: object, word: str) -> None:
    with pytest.raises(UserError, match=word):
        draw_clusters([photo], **{**SMALL, option: value})


def test_invalid_images_are_named(photo: Path) -> None:
    with pytest.raises(SettingError, match="--out"):
        draw_clusters([photo, photo], **SMALL)
    for path in (photo.parent / "missing.png", Path(__file__)):
        with pytest.raises(UserError, match=str(path)):
            draw_clusters([photo, path], **SMALL)


def test_networks_of_timm_have_pictures_too(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"backbone": "timm", "size": 96, "clusters": 2}
    (path,) = draw_clusters([photo], tmp_path / "out", **options)
    assert np.asarray(Image.open(path)).shape == (60, 130 * 2 + 8, 3)
    with pytest.raises(SettingError, match=r"--tap unet\.up\.2: .*block\.2"):
        draw_clusters([photo], **options, tap="unet.up.2")
    with pytest.raises(SettingError, match="--timestep 5"):
        draw_clusters([photo], **options, timestep=5)
    with pytest.raises(SettingError, match=r"--size=100 must be a multiple of 16"):
        draw_clusters([photo], **{**options, "size": 100})
    size = ["backbone.input_size=100"]
    monkeypatch.setattr(kmeans, "compose_config", lambda name, given: compose_config(name, [*given, *size]))
    with pytest.raises(SettingError, match=r"backbone\.input_size=100 must be a multiple of 16"):
        draw_clusters([photo], backbone="timm")
