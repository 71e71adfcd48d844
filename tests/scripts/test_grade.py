"""The packaged models and their grades."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from odise_pl.models.weights import WeightsError
from odise_pl.toyworld.things import THINGS
from scripts.pretrain_toyworld import grade
from scripts.pretrain_toyworld.__main__ import app
from scripts.pretrain_toyworld.models import WEIGHTS


@pytest.mark.slow
def test_packaged_models_are_small_and_accurate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(grade, "THINGS", THINGS[:4])  # for the UNet
    sheet = tmp_path / "sheet.png"
    lines = list(grade.grade(["clip", "vae", "unet"], WEIGHTS, count=100, each=2, steps=20, sheet=sheet))
    crops, masks, ratio, drawn = (float(line.split()[1]) for line in lines)
    assert crops >= 90
    assert masks >= 75
    assert ratio >= 28
    assert drawn >= 70
    assert Image.open(sheet).size == (13 * 128, 128)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 28 * 10**6


@pytest.mark.parametrize("wrong", [["clpi"], ["--count", "0"]])
def test_invalid_options_are_named(wrong: list[str]) -> None:
    result = CliRunner().invoke(app, ["grade", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output


@pytest.mark.parametrize("model", ["clip", "vae", "unet"])
def test_missing_and_damaged_weights_are_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=str(tmp_path)):
        next(grade.grade([model], tmp_path))
    shutil.copytree(WEIGHTS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=str(tmp_path)):
        next(grade.grade([model], tmp_path))


def test_crops_show_their_thing() -> None:
    cut = list(grade.crops(40))
    assert len(cut) == 40
    assert {image.shape for image, _ in cut} == {(128, 128, 3)}
    assert len({thing.name for _, thing in cut}) > 10


def test_vae_grade_of_a_known_error() -> None:
    class AlmostPerfect:
        """A VAE that restores everything but a small offset."""

        def encode(self, images: torch.Tensor) -> object:
            return type("Out", (), {"latent_dist": type("D", (), {"mean": images})})

        def decode(self, latents: torch.Tensor) -> object:
            return type("Out", (), {"sample": latents + 0.002})

    assert grade.grade_vae(AlmostPerfect(), 2) == pytest.approx(60, abs=1)
