"""The presets of conf/method with small networks, from training to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import QUICK, SMALL, SMALL_GROUPVIT, composed, run_through
from transformers import CLIPImageProcessor

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.errors import SettingError
from odise_pl.evaluation.run import evaluate
from odise_pl.export.onnx import export
from odise_pl.models.grouping import GroupingNetwork
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.prediction.predict import predict
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.runs.checks import check_training
from odise_pl.runs.conf import CONF
from odise_pl.training.run import train
from odise_pl.vocabulary import load_vocabulary

RESNET = ["backbone.weights=random", "+backbone.options.layers=[1,1,1,1]", "backbone.window=whole"]
CONV = ["clip=tiny_conv", "backbone.window=whole"]
VIT = ["backbone.weights=random", "+backbone.options.depth=4", "+backbone.options.embed_dim=32"]
VIT += ["+backbone.options.num_heads=2"]
DENSE = ["model.head.channels=64"]
# small parts in place of the preset's
PARTS = {
    "fc_clip": CONV,
    "ovrcoat": CONV,
    "openseg": RESNET,
    "mask2former": RESNET,
    "maskclip_proposals": RESNET,
    "simbaseline": [*RESNET, "clip=tiny"],
    "zegformer": [*RESNET, "clip=tiny"],
    "lseg": [*VIT, "clip=tiny", *DENSE],
    "lseg_plus": [*RESNET, *DENSE],
    "spnet_clip_text": [*RESNET, *DENSE],
    "best": ["backbone@backbone.first=tiny", "backbone.second.weights=random"],
}
PARTS["best"] += ["+backbone.second.options.layers=[1,1,1,1]", "backbone.input_size=64"]

# what a preset trains besides the heads
ALSO_TRAINED = {
    **dict.fromkeys(PARTS, "model.backbone.features."),
    "fc_clip": "nothing",
    "ovrcoat": "model.clip.model.visual.trunk.",
    "best": tuple(f"model.backbone.{part}." for part in ("features.networks.1", "pyramid", "captioner")),
}


def test_every_preset_is_tested() -> None:
    others = {"maskclip", "zs3net", "zs3net_seen", "groupvit"}
    names = {path.stem.removesuffix("_clip_text") for path in CONF.glob("method/*.yaml")}
    assert names == {name.removesuffix("_clip_text") for name in PARTS} | others


@pytest.mark.slow
@pytest.mark.parametrize("method", PARTS)
def test_method_trains_resumes_evaluates_and_predicts(
    method: str, scene_shards: Path, tmp_path: Path
) -> None:
    names = run_through([f"method={method}", *PARTS[method]], scene_shards, tmp_path)
    others = {name for name in names if name.startswith(("model.backbone.", "model.clip."))}
    assert {name for name in names if name.startswith(ALSO_TRAINED[method])} == others
    predict_photo(tmp_path)


def predict_photo(folder: Path) -> None:
    """Predict a picture by the run in a folder."""
    picture = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(picture)
    assert predict(folder / "run", [str(picture)], "dog,grass:stuff", folder / "out", device="cpu") == []
    assert (folder / "out" / "photo_segments.png").is_file()


@pytest.mark.slow
def test_groupvit_trains_resumes_evaluates_and_predicts(scene_shards: Path, tmp_path: Path) -> None:
    names = run_through([], scene_shards, tmp_path, SMALL_GROUPVIT)
    assert all(name.startswith("model.backbone.model.") for name in names)
    assert not [name for name in names if "running" in name]
    predict_photo(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_groupvit_of_transformers_is_a_checkpoint(name: str, scene_shards: Path, tmp_path: Path) -> None:
    weights = tmp_path / "groupvit-gcc-yfcc"
    config = composed("train", tmp_path, SMALL_GROUPVIT)
    network: GroupingNetwork = NetworkSettings.of_config(config).build(config.paths).eval()
    network.backbone.model.save_pretrained(weights)
    CLIPImageProcessor(image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(weights)
    if name == "pytorch_model.bin":
        torch.save(network.backbone.model.state_dict(), weights / name)
        (weights / "model.safetensors").unlink()
    found = Segmenter.from_pretrained(weights, {"paths.weights": str(tmp_path)}, "cpu").model
    state = network.backbone.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.backbone.model.state_dict().items())
    assert found.backbone.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    if name == "model.safetensors":
        with pytest.raises(SettingError, match=r"GroupViT.*--words"):
            export(weights, tmp_path / "x.onnx", settings={"paths.weights": str(tmp_path)})
        evaluation = [f"ckpt={weights}", "method=groupvit", f"paths.weights={tmp_path}", "data=shards"]
        evaluation += [
            f"data.val={scene_shards}",
            "data.limit_samples=1",
            "data.num_workers=0",
            "trainer=cpu",
        ]
        scores = evaluate(composed("evaluate", tmp_path / "evaluated", evaluation), evaluation)
        assert scores["val"].keys() & {"pq", "map", "miou", "miou_base"} == {"miou"}  # learned no labels
        evaluation += ["+data.unseen=[sky]"]
        scores = evaluate(composed("evaluate", tmp_path / "split", evaluation), evaluation)
        assert {"miou_base", "miou_novel"} <= scores["val"].keys()


def test_groupvit_refuses_parts_of_other_networks(tmp_path: Path) -> None:
    wrong = {
        "model=odise_label": (["method=groupvit"], "method=groupvit"),
        "backbone=tiny": (["method=groupvit"], "method=groupvit"),
        "classifier=both": (SMALL_GROUPVIT, "classifier=discriminative"),
        "fusion.mean_of_names=true": (SMALL_GROUPVIT, "mean_of_names"),
    }
    for setting, (others, way_out) in wrong.items():
        config = composed("train", tmp_path, [*others, setting, "data=shards"])
        with pytest.raises(SettingError, match=way_out):
            NetworkSettings.of_config(config).build(config.paths)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["criterion._target_=odise_pl.losses.contrast.ContrastCriterion"], r"criterion\._target_"),
        (["method=groupvit", "criterion._target_=odise_pl.losses.criterion.SetCriterion"], "criterion"),
        (["method=groupvit", "data.words=0"], r"data\.words"),
    ],
)
def test_training_refuses_losses_that_do_not_fit(settings: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=named):
        check_training(composed("train", tmp_path, [*settings, "data=shards", "data.train=x", "data.val=x"]))


@pytest.mark.slow
def test_learned_prompts_train_in_any_method(scene_shards: Path, tmp_path: Path) -> None:
    small = ["method=simbaseline", *PARTS["simbaseline"], "prompts=learned", "clip.prompt_tokens=4"]
    run_through(small, scene_shards, tmp_path)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["model.clip.prompt"].shape[0] == 4
    assert {name for name in state if name.startswith("model.clip.")} == {"model.clip.prompt"}


@pytest.fixture
def vectors(scene_shards: Path, tmp_path: Path) -> str:
    """The setting of a file with vectors of the words in the classes' names."""
    names = load_vocabulary(scene_shards / "dataset.json").names
    words = sorted({word for name in names for word in name.split()})
    numbers = np.random.default_rng(0).normal(size=(len(words), 6))
    lines = [f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, numbers, strict=True)]
    (tmp_path / "words.vec").write_text("".join(lines))
    return f"fusion.word_vectors=[{tmp_path}/words.vec]"


@pytest.mark.slow
def test_pixels_are_compared_with_vectors_of_words(scene_shards: Path, tmp_path: Path, vectors: str) -> None:
    run_through(["method=spnet", *PARTS["spnet_clip_text"], vectors], scene_shards, tmp_path)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["model.mask_decoder.embedding.weight"].shape == (6, 64, 1, 1)


def test_second_stage_of_maskclip_keeps_the_masks_of_the_first(scene_shards: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    small = [*SMALL, *QUICK, *RESNET, f"data.train={scene_shards}", f"data.val={scene_shards}"]
    train(composed("train", first, ["method=maskclip_proposals", *small, "trainer.max_steps=1"]))
    with pytest.raises(SettingError, match="init_from"):
        check_training(composed("train", tmp_path / "x", ["method=maskclip", *small]))
    other = ["method=maskclip", *small, "model.head.queries=3", f"init_from={first}"]
    with pytest.raises(WeightsError, match=r"method=maskclip_proposals with the same .* head"):
        train(composed("train", tmp_path / "y", other))
    run_through(["method=maskclip", *RESNET, f"init_from={first}"], scene_shards, tmp_path)
    old, new = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (first, tmp_path / "run")
    )
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = new.keys() - old.keys()
    assert added == {name for name in new if name.startswith("model.refinement.blocks.")} != set()
    assert not [n for n in old if n.startswith(("model.text_projection", "model.mask_decoder.embedding"))]


@pytest.mark.slow
def test_second_stage_of_zs3net_keeps_the_network_of_the_first(
    scene_shards: Path, tmp_path: Path, vectors: str
) -> None:
    first, small = tmp_path / "first", [*PARTS["spnet_clip_text"], "model.head.channels=32", vectors]
    sets = [f"data.train={scene_shards}", f"data.val={scene_shards}"]
    quick = [*SMALL, *QUICK, *small, *sets]
    train(composed("train", first, ["method=zs3net_seen", *quick, "trainer.max_steps=1"]))
    for text in ("", "_clip_text"):
        with pytest.raises(SettingError, match=rf"method=zs3net_seen{text}\b"):
            check_training(composed("train", tmp_path / "x", [f"method=zs3net{text}", *SMALL, *small, *sets]))
    other = ["method=zs3net", *quick, f"init_from={first}", "+data.unseen=[sky]"]
    with pytest.raises(SettingError, match="repeat its data"):
        train(composed("train", tmp_path / "y", other))
    run_through(["method=zs3net", *small, f"init_from={first}"], scene_shards, tmp_path)
    old, new = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (first, tmp_path / "run")
    )
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = new.keys() - old.keys()
    assert added == {name for name in new if name.startswith("model.generator.")} != set()
