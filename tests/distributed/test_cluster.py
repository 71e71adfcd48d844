"""Two machines of two devices, played by processes of this one: data, checkpoints, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
import torch
from interruptions import assert_same_end
from small_runs import SMALL, composed

from odise_pl.models.weights import read_checkpoint

# four processes twice: minutes on two cores
pytestmark = pytest.mark.slow

PLACES = [
    "trainer=fsdp",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.num_nodes=2",
    "trainer.devices=2",
    "trainer.enable_progress_bar=false",
]
BATCHES = "data.eval_batch_size=3"  # three batches for four ranks: one has none


def train(shards: Path, folder: Path, *more: str) -> None:
    """Two epochs on two machines of two devices, as torchrun starts them."""
    seen = [f"+callbacks.seen={{_target_: ranks.Seen, folder: '{folder}'}}"]
    run = ["data.batch_size=1", "global_batch=4", "trainer.max_steps=4", "validate_every=4"]
    logged = ["callbacks.checkpoint.every_n_train_steps=2", BATCHES]
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.run.dir={folder}"]
    ranks.run(ranks.torchrun, 2, 2, ["train.py", *SMALL, *PLACES, *run, *logged, *seen, *data, *more])


@pytest.fixture(scope="module")
def cluster_run(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    train(scene_shards, folder)
    return folder


def test_ranks_see_disjoint_images(cluster_run: Path) -> None:
    epochs: dict[str, list[str]] = {"0": [], "1": []}
    for rank in range(4):
        for line in (cluster_run / f"seen_{rank}.txt").read_text().splitlines():
            epoch, *images = line.split()
            epochs[epoch] += images
    for images in epochs.values():
        assert sorted(map(int, images)) == list(range(1, 9)), "no image twice, none missing"


def test_resumed_run_ends_as_undisturbed(cluster_run: Path, scene_shards: Path, tmp_path: Path) -> None:
    train(scene_shards, tmp_path, f"ckpt={cluster_run / 'checkpoints' / 'step_2.ckpt'}")
    assert_same_end(cluster_run, tmp_path)
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert {type(value) for value in state.values()} == {torch.Tensor}, "no shards"
    for rank in range(4):
        seen, again = ((folder / f"seen_{rank}.txt").read_text() for folder in (cluster_run, tmp_path))
        assert seen.endswith(again)


def test_evaluation_equals_that_of_one_device(cluster_run: Path, scene_shards: Path, tmp_path: Path) -> None:
    """Started as Slurm does it."""
    from odise_pl.evaluation.run import evaluate

    common = [f"ckpt={cluster_run}/checkpoints/last.ckpt", "data=shards", f"data.val={scene_shards}"]
    common += ["data.num_workers=0", BATCHES]
    ranks.run(ranks.slurm, 2, 2, ["evaluate.py", *common, *PLACES, f"hydra.run.dir={tmp_path}/four"])
    alone = [*common, "trainer=cpu", "trainer.enable_progress_bar=false"]
    evaluate(composed("evaluate", tmp_path / "one", alone), alone)
    four, one = (next((tmp_path / name).glob("evaluation/*/val/results.json")) for name in ("four", "one"))
    found, expected = (json.loads(path.read_text()) for path in (four, one))
    assert found == expected
    assert found["images"] == 8
    assert found["scores"]["miou"] > 0
