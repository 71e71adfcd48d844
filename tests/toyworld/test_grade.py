"""The models that come with the project, and how they are graded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from odise_pl.toyworld import grade
from odise_pl.toyworld.things import THINGS

WEIGHTS = Path(grade.__file__).with_name("weights")


def test_the_models_that_come_with_the_project_are_small_and_good(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grade, "THINGS", THINGS[:4])  # things that are drawn
    few = ["--count", "100", "--each", "2", "--steps", "20", "--sheet", str(tmp_path / "sheet.png")]
    assert grade.main(few) == 0
    lines = capsys.readouterr().out.splitlines()
    share, masks, ratio, drawn = (float(line.split()[1]) for line in lines)
    assert share >= 90
    assert masks >= 75
    assert ratio >= 28
    assert drawn >= 70
    assert Image.open(tmp_path / "sheet.png").size == (13 * 128, 128)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 28 * 10**6


@pytest.mark.parametrize(
    "wrong",
    [["clpi"], ["clip", "--count", "0"], ["vae", "--count", "-1"], ["unet", "--each", "0"],
     ["unet", "--sheet", "sheet.jpg"], ["unet", "--sheet", "sheet"]],
)  # fmt: skip
def test_grades_of_nothing_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grade.main(wrong)
    assert (wrong[1] if wrong[1:] else "choose from clip, vae, unet") in capsys.readouterr().err


@pytest.mark.parametrize("model", ["clip", "vae", "unet"])
def test_weights_that_are_not_there_or_damaged_are_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--weights", str(tmp_path), "--count", "1", "--each", "1", "--steps", "1"]
    assert grade.main([model, *where]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    shutil.copytree(WEIGHTS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    assert grade.main([model, *where]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_crops_show_their_thing() -> None:
    cut = list(grade.crops(40))
    assert len(cut) == 40
    assert {image.shape for image, _ in cut} == {(128, 128, 3)}
    assert len({thing.name for _, thing in cut}) > 10
