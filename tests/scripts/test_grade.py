"""The packaged weights and their grades."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from odise_pl.models.weights import WeightsError
from odise_pl.toyworld.things import THINGS
from scripts.pretrain_toyworld import grade
from scripts.pretrain_toyworld.__main__ import app
from scripts.pretrain_toyworld.networks import CLIP_FILE, DIFFUSION_FOLDER, MEMBERS, WEIGHTS


@pytest.mark.slow
def test_packaged_weights_are_small_and_accurate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(grade, "THINGS", THINGS[:4])  # for the UNet
    sheet = tmp_path / "sheet.png"
    networks = ["clip", "autoencoder", "unet"]
    lines = list(grade.yield_grades(networks, WEIGHTS, count=100, each=2, steps=20, sheet=sheet))
    crops, masks, ratio, drawn = (float(line.split()[1]) for line in lines)
    assert crops >= 90
    assert masks >= 75
    assert ratio >= 28
    assert drawn >= 70
    assert Image.open(sheet).size == (4 * 128, 2 * 128)
    shipped = [WEIGHTS / CLIP_FILE, *(WEIGHTS / DIFFUSION_FOLDER).rglob("*.safetensors")]
    shipped += (WEIGHTS / MEMBERS).glob("*_conv.safetensors")
    assert sum(path.stat().st_size for path in shipped) <= 38 * 10**6


def test_command_grades_and_names_missing_weights(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["grade", "autoencoder", "--count", "2"])
    assert result.output.startswith("autoencoder: ")
    result = CliRunner().invoke(app, ["grade", "clip", "--weights", str(tmp_path)])
    assert isinstance(result.exception, WeightsError)
    assert str(tmp_path) in str(result.exception)


def test_crops_show_their_thing() -> None:
    cut = list(grade.crops(40))
    assert len(cut) == 40
    assert {image.shape for image, _ in cut} == {(128, 128, 3)}
    assert len({thing.name for _, thing in cut}) > 10


def test_autoencoder_grade_of_a_known_error() -> None:
    class AlmostPerfect:
        """Restores everything but a small offset."""

        def encode(self, images: torch.Tensor) -> object:
            return type("Out", (), {"latent_dist": type("D", (), {"mean": images})})

        def decode(self, latents: torch.Tensor) -> object:
            return type("Out", (), {"sample": latents + 0.002})

    assert grade.grade_autoencoder(AlmostPerfect(), 2) == pytest.approx(60, abs=1)
