"""The wheel, installed into a fresh environment and used in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from scenes import make_scenes

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def odise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command, with the libraries of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", str(python), "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    return folder / "env" / "bin" / "odise"


def test_installed_package_works_in_an_empty_folder(odise: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / "coco", 8)
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [odise, *arguments], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{ROOT}/odise_pl" not in done.stderr, "the repository was used"

    run("prepare", "coco", "--root", "../coco", "--split", "train2017", "--out", "shards", "--workers", "1")
    data = ["data.train=shards", "data.val=shards", "data.num_workers=0", "data.limit_samples=2"]
    steps = ["trainer.max_steps=2", "validate_every=2", "data.batch_size=2", "global_batch=2"]
    run("train", "experiment=toy", "run=demo", *data, *steps)
    run("evaluate", "run=demo", "ckpt=last", "data=shards", "data.val=shards", "trainer=cpu")
    (results,) = empty.glob("runs/demo/evaluation/*/results.json")
    assert json.loads(results.read_text())
    (picture, *_) = sorted((tmp_path / "coco" / "train2017").iterdir())
    run("predict", "runs/demo/checkpoints/last.ckpt", str(picture), "--words", "dog,sky:stuff")
    assert (empty / "predictions" / f"{picture.stem}_segments.png").exists()
