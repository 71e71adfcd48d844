"""The page of methods against conf/, and its example from file to network."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odise_pl.runs.conf import CONF, compose_config

PRESETS = sorted({path.stem.removesuffix("_clip_text") for path in CONF.glob("method/*.yaml")})
PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


@cache
def composed(name: str) -> DictConfig:
    return compose_config("train", ["run_dir=.", f"method={name}"])


def test_every_preset_is_a_row() -> None:
    presets = re.findall(r"^\| `(\w+)` \| \[", PAGE, re.MULTILINE)
    assert sorted(presets) == PRESETS
    assert all(f"`{path.stem}`" in PAGE for path in CONF.glob("method/*_clip_text.yaml"))


@pytest.mark.parametrize("name", [path.stem for path in CONF.glob("method/*.yaml")])
def test_preset_has_its_own_name_in_reports(name: str) -> None:
    assert composed(name).model.method == name


# what makes a preset the method of its paper
PUBLISHED = {
    "fc_clip": {"fusion.regions": "pooled", "fusion.seen_share": 0.4, "fusion.unseen_share": 0.8,
                "fusion.rule": "normalised", "model.head.queries": 250, "clip.trained": False},
    "ovrcoat": {"fusion.objectness_share": 0.5, "clip.trained": True, "criterion.weights.regions": 0.1,
                "optimizer.lr_scale.clip": 0.1, "fusion.unseen_share": 0.8},
    "maskclip_proposals": {"criterion.weights.classification": 0, "classifier.mode": "discriminative",
                           "model.inference.object_threshold": 0.5, "fusion.regions": "masked"},
    "maskclip": {"criterion.weights.classification": 2.0, "criterion.no_object_weight": 0.0,
                 "trainer.max_steps": 10000, "model.refinement.no_object": "other"},
    "mask2former": {"classifier.mode": "diffusion", "backbone.trained": True},
    "simbaseline": {"fusion.rule": "product", "fusion.crop_threshold": 0.4, "fusion.seen_share": 0.5,
                    "fusion.unseen_share": 0.5, "criterion.weights.mask": 20.0, "optimizer.power": 0.9},
    "zegformer": {"fusion.rule": "flat_seen", "fusion.crop_threshold": 0.5, "fusion.mean_of_names": True,
                  "fusion.seen_share": 0.3333, "fusion.unseen_share": 0.6667, "model.head.logit_scale": 100.0,
                  "model.inference.seen_penalty": 0.1},
    "openseg": {"model.supervision": "words", "model.head.queries": 128, "model.head.regions": True,
                "criterion._target_": "odise_pl.losses.best_mask.BestMaskCriterion"},
    "lseg": {"model.head.kind": "dpt", "model.head.logit_scale": 14.285714, "optimizer.algorithm": "sgd",
             "optimizer.lr": 4e-3, "optimizer.lr_scale.pixel_decoder": 10, "backbone.input_size": 480},
    "lseg_plus": {"model.head.kind": "fpn", "criterion._target_": "odise_pl.losses.pixels.PixelCriterion"},
    "spnet": {"model.head.kind": "aspp", "model.head.cosine": False, "model.inference.seen_penalty": 0.4,
              "optimizer.lr": 2.5e-4, "optimizer.weight_decay": 5e-4, "backbone.options.output_stride": 8},
    "zs3net_seen": {"model.head.kind": "deeplab", "optimizer.lr": 7e-3, "backbone.options.output_stride": 16},
    "zs3net": {"model.generator.hidden": 256, "model.generator.noise": 300, "model.generator.samples": 128,
               "optimizer.algorithm": "adamw", "optimizer.lr": 2e-4, "optimizer.lr_scale": None},
    "groupvit": {"data.eval_short_side": 448, "model.inference.window": 448, "data.words": 3,
                 "model.inference.best_classes": 5, "model.inference.background_threshold": 0.95,
                 "fusion.clip_prompt": "a photo of a {}.", "optimizer.lr": 1.6e-3},
    "best": {"model.head.embed_dim": None, "fusion.objectness_share": 0.5, "backbone.second.trained": True},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_published_numbers(name: str) -> None:
    found = {key: OmegaConf.select(composed(name), key) for key in PUBLISHED[name]}
    assert found == PUBLISHED[name]


def test_example_is_a_method_in_one_file(tmp_path: Path) -> None:
    title, text = re.findall(r'```yaml title="conf/(method/\w+\.yaml)"\n(.*?)```', PAGE, re.DOTALL)[0]
    (tmp_path / "method").mkdir()
    (tmp_path / title).write_text(text)
    found = [f"hydra.searchpath=[file://{tmp_path}]", f"method={Path(title).stem}"]
    small = ["experiment=laptop", "run_dir=.", "model.head.queries=7"]
    config = compose_config("train", [*small, *found])
    network = instantiate(config.model)
    assert network.text_projection.null_embed.shape == (1, network.clip.embed_dim)
    with torch.no_grad():
        output = network.decode(torch.rand(1, 3, 64, 64))[-1]
    assert output.mask_embed.shape == (1, 7, network.clip.embed_dim)
    assert len(config.fusion.mask_prompt) == len(config.fusion.clip_prompt) == 14
