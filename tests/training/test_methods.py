"""The presets of conf/method with small networks, from training to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import QUICK, SMALL, composed, run_through

from odise_pl.models.weights import read_checkpoint
from odise_pl.prediction.predict import predict
from odise_pl.runs.conf import CONF
from odise_pl.training.run import train

RESNET = ["backbone.weights=random", "+backbone.options.layers=[1,1,1,1]", "backbone.window=whole"]
CONV = ["clip=tiny_conv", "backbone.window=whole"]
# small parts in place of the preset's
PARTS = {
    "fc_clip": CONV,
    "ovrcoat": CONV,
    "openseg": RESNET,
    "mask2former": RESNET,
    "maskclip_proposals": RESNET,
    "maskclip": RESNET,
    "simbaseline": [*RESNET, "clip=tiny"],
    "zegformer": [*RESNET, "clip=tiny"],
}

# what a preset trains besides the heads
ALSO_TRAINED = {
    **dict.fromkeys(PARTS, "model.backbone.features."),
    "fc_clip": "nothing",
    "ovrcoat": "model.clip.model.visual.trunk.",
}


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in CONF.glob("method/*.yaml")} == set(PARTS)


@pytest.mark.parametrize("method", PARTS)
def test_method_trains_resumes_evaluates_and_predicts(
    method: str, scene_shards: Path, tmp_path: Path
) -> None:
    names = run_through([f"method={method}", *PARTS[method]], scene_shards, tmp_path)
    others = {name for name in names if name.startswith(("model.backbone.", "model.clip."))}
    assert {name for name in names if name.startswith(ALSO_TRAINED[method])} == others
    picture = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(picture)
    assert predict(tmp_path / "run", [str(picture)], "dog,grass:stuff", tmp_path / "out", device="cpu") == []
    assert (tmp_path / "out" / "photo_segments.png").is_file()


def test_second_stage_of_maskclip_keeps_the_masks_of_the_first(scene_shards: Path, tmp_path: Path) -> None:
    small = [*SMALL, *QUICK, *RESNET, f"data.train={scene_shards}", f"data.val={scene_shards}"]
    small += ["trainer.max_steps=1"]
    states = []
    for method, source in (
        ("maskclip_proposals", []),
        ("maskclip", [f"init_from={tmp_path / 'maskclip_proposals'}"]),
    ):
        train(composed("train", tmp_path / method, [f"method={method}", *small, *source]))
        states.append(read_checkpoint(tmp_path / method / "checkpoints" / "last.ckpt")["state_dict"])
    first, second = states
    assert all(torch.equal(second[name], value) for name, value in first.items())
    added = {name for name in second if name not in first}
    assert added == {name for name in second if name.startswith("model.refinement.blocks.")} != set()
    assert not [
        name for name in first if name.startswith(("model.text_projection", "model.mask_decoder.embedding"))
    ]
