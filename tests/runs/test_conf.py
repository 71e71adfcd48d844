"""Every choice in conf/ composes, and every _target_ in it instantiates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odise_pl.models.backbones.stable_diffusion import build_diffusion
from odise_pl.runs.conf import CONF, compose_config
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.record import backbone_name

GROUPS = sorted(f.parent.name + "=" + f.stem for f in CONF.glob("*/*.yaml"))
# no published weights, small networks
RANDOM = ["backbone.weights=random", "clip.weights=random"]
TINY = ["backbone=tiny", "clip=tiny"]


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    data = ["data.train=somewhere", "data.val=somewhere"]
    return compose_config("train", ["run=test", f"run_dir={tmp_path}", *overrides, *data])


def targets(node: Any) -> Iterator[DictConfig]:
    """Every node with a _target_, at any depth."""
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield node
        for key in node:
            yield from targets(node[key])


@pytest.mark.parametrize("choice", GROUPS)
def test_every_choice_instantiates(choice: str, tmp_path: Path) -> None:
    if choice in ("logger=wandb", "logger=mlflow"):
        pytest.importorskip(choice.partition("=")[2])
    own_sizes = choice in ("experiment=laptop", "experiment=overfit", "backbone=clip")
    toy = choice == "experiment=toy"
    small = () if own_sizes else RANDOM if toy else (*RANDOM, *TINY, "trainer=cpu")
    if choice == "backbone=two":
        small = ("backbone@backbone.first=tiny", "backbone@backbone.second=timm")
    if choice == "experiment=demo":  # on top of another
        small, choice = ("clip.weights=random",), "experiment=[toy,demo]"
    small = ("clip.weights=random",) if choice.startswith("method=") else small  # they choose their parts
    small = ("method=groupvit", "backbone.weights=random") if choice == "model=groupvit" else small
    config = composed(tmp_path, *small, choice)
    group = choice.partition("=")[0]
    sections = {
        "loading": ("data",),
        "model": ("model", "criterion", "grounding"),
        "vocabulary": (),
        "prompts": ("classifier",),
        "method": ("criterion", "grounding"),
        "split": ("data",),
        "experiment": tuple(config),
    }
    nodes = [config[name] for name in sections.get(group, (group,))]
    for target in (found for node in nodes for found in targets(node)):
        if choice == "trainer=gpu" and not torch.cuda.is_available():
            with pytest.raises(InstantiationException, match="gpu"):
                instantiate(target)
        else:
            assert instantiate(target) is not None or target["_target_"].endswith(".none_captioner")


def test_defaults_are_the_published_run(tmp_path: Path) -> None:
    config = composed(tmp_path)
    assert config.global_batch == 64
    assert config.trainer.max_steps == 92188
    assert config.model.supervision == "label"
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.clip_norm) == (
        1e-4,
        0.05,
        0.01,
    )
    assert (config.criterion.num_points, config.criterion.oversample, config.criterion.importance) == (
        12544,
        3,
        0.75,
    )
    assert (config.data.image_size, list(config.data.scale_range)) == (1024, [0.1, 2.0])
    assert (config.data.eval_short_side, config.data.eval_long_side) == (1024, 2560)
    settings = instantiate(config.backbone)
    assert tuple(settings.timesteps) == (0,)
    assert settings.input_size == settings.window == settings.channels == 512


@pytest.mark.parametrize(("choice", "size", "prediction"), [
    ("stable_diffusion_v2", 512, "epsilon"),
    ("stable_diffusion_v2_768", 768, "v_prediction"),
])  # fmt: skip
def test_stable_diffusion_2_has_published_sizes(
    choice: str, size: int, prediction: str, tmp_path: Path
) -> None:
    settings = instantiate(composed(tmp_path, f"backbone={choice}").backbone)
    assert settings.input_size == settings.window == size
    assert settings.architecture.prediction == prediction
    with torch.device("meta"):
        models = build_diffusion(settings.architecture)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (models.unet, models.text_encoder)]
    assert sizes == [865_910_724, 340_387_840]


def test_slurm_launcher_starts_a_process_per_device() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "trainer.devices=8", "trainer.num_nodes=2"]
        config = compose("train", overrides, return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 8, 8)


def test_swept_backbones_are_rows_of_the_report(tmp_path: Path) -> None:
    """All but the diffusion models, whose captioner has a setting of its own."""
    sweep = OmegaConf.load(CONF / "experiment" / "ablation_backbone.yaml").hydra.sweeper.params.backbone
    (rows,) = (ablation.rows for ablation in ABLATIONS if ablation.name == "backbone")
    assert sweep.split(",") == [name for name in rows if name not in ("stable_diffusion_v1", "ldm_in1k")]
    for name in ("stable_diffusion_v1", *sweep.split(",")):
        config = composed(tmp_path, "experiment=ablation_backbone", f"backbone={name}")
        assert backbone_name(config.backbone) == name
        assert (config.data.image_size, config.model.supervision) == (512, "caption")
