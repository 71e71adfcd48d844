from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from odise_pl.runs.record import (
    AblationSettings,
    RunError,
    backbone_name,
    evaluation_folder,
    extract_ablation_settings,
    is_finished,
    list_changes,
    mark_finished,
    read_settings,
    write_settings,
)

WORDS = AblationSettings("caption", "0+100", False, "implicit", "both", method="odise_caption")


def settings(**changed: Any) -> dict[str, Any]:
    base = {
        "run_dir": "somewhere",
        "ckpt": None,
        "global_batch": 4,
        "data": {"train": "here", "num_workers": 4},
        "trainer": {"devices": 1, "max_steps": 10},
    }
    plain: Any = OmegaConf.to_container(OmegaConf.merge(base, changed))
    return plain


def test_ablation_settings_of_a_network() -> None:
    model: dict[str, Any] = {
        "supervision": "caption",
        "backbone": {"timesteps": [0, 100]},
        "captioner": {"_target_": "odise_pl.models.build.implicit_captioner", "learnable_time": False},
        "classifier": {"mode": "both"},
    }
    assert extract_ablation_settings(model) == WORDS
    learned = extract_ablation_settings(model | {"backbone": {"timesteps": "learnable"}})
    assert (learned.timesteps, learned.learnable_time) == ("learnable", True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"weights": "${paths.weights}/sd-v1-3.ckpt"}, "stable_diffusion_v1"),
        ({"weights": "/elsewhere/toyworld/diffusion/"}, "toy"),
        ({"weights": "timm/vit_base_patch8_224.dino", "model": "vit_base_patch8_224.dino"}, "dino_b"),
        ({"weights": "moco-v3-vit-l.safetensors", "model": "vit_large_patch16_224.mae"}, "moco_v3_l"),
        ({"weights": "sd-v1-3.ckpt", "unet": "mine/unet.safetensors"}, "unet"),
        ({"weights": "sd-v1-3.ckpt", "unet": None}, "stable_diffusion_v1"),
        ({"weights": "random", "architecture": {"heads": 8}}, "random"),
        ({"weights": "random", "model": "vit_tiny.of"}, "random vit_tiny.of"),
        ({"first": {"weights": "sd-v1-3.ckpt"}, "second": {"weights": "b.pth"}}, "stable_diffusion_v1+b"),
        (None, "unknown"),
    ],
)
def test_backbone_is_named_by_its_weights(settings: dict[str, Any] | None, name: str) -> None:
    assert backbone_name(settings) == name


def test_changes_list_only_relevant_settings() -> None:
    for same in (
        {"run_dir": "elsewhere"},
        {"ckpt": "last"},
        {"data": {"num_workers": 0}},
        {"trainer": {"devices": 8}},
    ):
        assert list_changes(settings(), settings(**same)) == []
    other = settings(global_batch=8, data={"words": 3}, trainer={"max_steps": 20})
    assert list_changes(settings(), other) == [
        "data.words absent -> 3",
        "global_batch 4 -> 8",
        "trainer.max_steps 10 -> 20",
    ]


def test_moved_folders_and_repeated_settings_are_no_changes() -> None:
    """Nor are download commands and the number of windows per pass."""

    def network(weights: str, **backbone: Any) -> dict[str, Any]:
        part = {"weights": f"{weights}/sd.ckpt", "source": f"hf download {weights}", **backbone}
        return settings(paths={"weights": weights}, backbone=part, model={"backbone": part, "queries": 100})

    moved = network("/new/weights", window_batch=1)
    assert list_changes(network("weights", window_batch=0), moved) == []
    other = network("weights", window=64)
    other["backbone"]["weights"] = "weights/other.ckpt"
    assert list_changes(network("weights"), other) == [
        "backbone.weights weights/sd.ckpt -> weights/other.ckpt",
        "backbone.window absent -> 64",
    ]


def test_evaluations_of_earlier_versions_have_no_paths() -> None:
    kept = {"network": {"weights": "w/sd.ckpt"}}
    assert list_changes(kept, {**kept, "paths": {"weights": "w"}}) == []


def test_settings_are_read_as_written(tmp_path: Path) -> None:
    assert read_settings(tmp_path) is None
    write_settings(tmp_path / "run", settings(optimizer={"lr": 1e-3}, name="a: 'b'", none=None))
    kept = read_settings(tmp_path / "run")
    assert kept is not None
    assert list_changes(kept, settings(optimizer={"lr": 1e-3}, name="a: 'b'", none=None)) == []
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match=r"config\.yaml"):
        read_settings(tmp_path)


def test_settings_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They were numbered and unresolved, and had other names."""
    (tmp_path / "config.yaml").write_text("x: 1\n")
    (tmp_path / "config_1.yaml").write_text(
        "backbone: {train_window: 128, _target_: odise_pl.build.BackboneSettings}\n"
        "run: ${hydra:runtime.choices.model}\nrun_dir: ${hydra:runtime.output_dir}\n"
        "paths: {weights: w}\nclip: {weights: '${paths.weights}/c'}\n"
    )
    kept = read_settings(tmp_path)
    assert kept is not None
    assert kept["backbone"] == {"window": 128, "_target_": "odise_pl.models.build.BackboneSettings"}
    assert kept["clip"] == {"weights": "w/c"}


def test_only_the_same_settings_are_finished(tmp_path: Path) -> None:
    write_settings(tmp_path / "a", settings(name="a"))
    mark_finished(tmp_path / "a", WORDS, {})
    assert is_finished(tmp_path / "a", settings(name="a"))
    assert not is_finished(tmp_path / "a", settings(name="b"))
    assert not is_finished(tmp_path / "c", settings())


def test_evaluation_folder_depends_on_settings(tmp_path: Path) -> None:
    words = ["coco+my val", "both", "step_5"]
    places = []
    for number in range(3):
        places.append(evaluation_folder(tmp_path, words, settings(weights=number)))
        write_settings(places[-1], settings(weights=number))
    name = "coco+my_val-both-step_5"
    assert [place.name for place in places] == [name, f"{name}-2", f"{name}-3"]
    assert [evaluation_folder(tmp_path, words, settings(weights=number)) for number in range(3)] == places
    earlier = evaluation_folder(tmp_path, ["earlier"], settings())
    earlier.mkdir()
    mark_finished(earlier, WORDS, {})  # of an earlier version, without settings
    assert evaluation_folder(tmp_path, ["earlier"], settings()).name == "earlier-2"
