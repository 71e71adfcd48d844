"""The presets of conf/method with small networks, from training to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import run_through

from odise_pl.prediction.predict import predict
from odise_pl.runs.conf import CONF

RESNET = ["backbone.weights=random", "+backbone.options.layers=[1,1,1,1]", "backbone.window=whole"]
CONV = ["clip=tiny_conv", "backbone.window=whole"]
# small parts in place of the preset's
PARTS = {
    "fc_clip": CONV,
    "ovrcoat": CONV,
    "mask2former": RESNET,
}

# what a preset trains besides the heads
ALSO_TRAINED = {
    "ovrcoat": "model.clip.model.visual.trunk.",
    "mask2former": "model.backbone.features.",
}


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in CONF.glob("method/*.yaml")} == set(PARTS)


@pytest.mark.parametrize("method", PARTS)
def test_method_trains_resumes_evaluates_and_predicts(
    method: str, scene_shards: Path, tmp_path: Path
) -> None:
    names = run_through([f"method={method}", *PARTS[method]], scene_shards, tmp_path)
    others = {name for name in names if name.startswith(("model.backbone.", "model.clip."))}
    assert {name for name in names if name.startswith(ALSO_TRAINED.get(method, "nothing"))} == others
    picture = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(picture)
    assert predict(tmp_path / "run", [str(picture)], "dog,grass:stuff", tmp_path / "out", device="cpu") == []
    assert (tmp_path / "out" / "photo_segments.png").is_file()
