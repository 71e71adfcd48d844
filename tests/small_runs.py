"""Settings of short runs with a small network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from odise_pl.evaluation.run import evaluate
from odise_pl.models.weights import read_checkpoint
from odise_pl.runs.conf import compose_config
from odise_pl.training.run import train

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=laptop",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=96",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
]

# Two images, two steps: for run_through.
QUICK = ["validate_every=100", "~callbacks.report", "~callbacks.pictures", "criterion.num_points=64"]
QUICK += ["data.batch_size=2", "global_batch=2", "data.image_size=64", "backbone.window=64"]
QUICK += ["data.limit_samples=2", "+trainer.limit_val_batches=1"]
# The same for GroupViT, which has other parts.
SMALL_GROUPVIT = ["data=shards", "trainer=cpu", "optimizer.reference_batch=2"]
SMALL_GROUPVIT += [
    setting
    for setting in (*SMALL, *QUICK)
    if not setting.startswith(("experiment=", "backbone.", "model.", "criterion."))
]
SIZES = {"image_size": 32, "width": 32, "heads": 2, "depths": "[1,1,1]", "groups": "[6,3]", "text_width": 16}
SIZES |= {"text_layers": 2, "text_heads": 2, "embed_dim": 16, "projection_width": 32}
SMALL_GROUPVIT += ["method=groupvit", "backbone.weights=random"]
SMALL_GROUPVIT += [f"+backbone.architecture.{name}={size}" for name, size in SIZES.items()]


def composed(name: str, run_dir: Path, overrides: list[str]) -> DictConfig:
    return compose_config(name, ["run=test", f"run_dir={run_dir}", *overrides])


def run_through(
    settings: list[str], shards: Path, folder: Path, small: Sequence[str] = (*SMALL, *QUICK)
) -> set[str]:
    """Train a step, resume for two more, evaluate; returns the names of the weights in the checkpoint."""
    run, last = folder / "run", folder / "run" / "checkpoints" / "last.ckpt"
    settings = [*small, *settings, f"data.train={shards}", f"data.val={shards}"]
    config = composed("train", run, [*settings, "trainer.max_steps=1"])
    train(config)
    first = read_checkpoint(last)
    # the first of two steps has the rate that the run ended with, which is 0 after a polynomial decay
    train(composed("train", run, [*settings, "trainer.max_steps=3", "ckpt=last"]))
    second = read_checkpoint(last)
    assert (first["global_step"], second["global_step"]) == (1, 3)
    names = set(second["state_dict"])
    assert any(not torch.equal(second["state_dict"][name], first["state_dict"][name]) for name in names)
    trained = "trained: true" in OmegaConf.to_yaml(config.backbone)
    assert any(".features." in name for name in names) == trained
    evaluation = [f"ckpt={last}", "data=shards", f"data.val={shards}", "data.limit_samples=1"]
    evaluation += ["data.num_workers=0", "trainer=cpu"]
    result = evaluate(composed("evaluate", folder / "evaluated", evaluation), evaluation)["val"]
    head = config.model.get("head", {})
    dense = not head or head["_target_"].endswith(".DenseSettings")
    assert set(result) >= ({"miou"} if dense else {"pq", "map", "miou"})
    assert ("pq" in result) != dense
    assert all(0 <= result[name] <= 1 for name in ("pq", "map", "miou") if name in result)
    return names
