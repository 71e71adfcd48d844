"""Several machines, played by processes of this one: disjoint data, checkpoints, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback

from odise_pl.models.weights import read_checkpoint

# four processes twice: minutes on two cores
pytestmark = pytest.mark.slow


class Seen(Callback):
    """Writes down which images each rank trains on, epoch by epoch."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        with (self.folder / f"seen_{trainer.global_rank}.txt").open("a") as file:
            print(trainer.current_epoch, *batch.image_ids, file=file)


SMALL = [
    "experiment=laptop",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=64",
    "data.eval_batch_size=3",  # three batches for four ranks: one has none
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer=fsdp",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.num_nodes=2",
    "trainer.devices=2",
    "trainer.enable_progress_bar=false",
]


def train(shards: Path, folder: Path, *more: str) -> None:
    """Two epochs on two machines of two devices, as torchrun starts them."""
    seen = [f"+callbacks.seen={{_target_: test_cluster.Seen, folder: '{folder}'}}"]
    run = ["data.batch_size=1", "global_batch=4", "trainer.max_steps=4", "validate_every=4"]
    logged = ["callbacks.checkpoint.every_n_train_steps=2", "~callbacks.progress"]
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.run.dir={folder}"]
    ranks.run(ranks.torchrun, 2, 2, ["train.py", *SMALL, *run, *logged, *seen, *data, *more])


@pytest.fixture(scope="module")
def cluster_run(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    train(scene_shards, folder)
    return folder


def test_machines_see_disjoint_images_and_together_all(cluster_run: Path) -> None:
    epochs: dict[str, list[str]] = {"0": [], "1": []}
    for rank in range(4):
        for line in (cluster_run / f"seen_{rank}.txt").read_text().splitlines():
            epoch, *images = line.split()
            epochs[epoch] += images
    for images in epochs.values():
        assert sorted(map(int, images)) == list(range(1, 9)), "no image twice, none lost"


def test_a_checkpoint_of_several_machines_is_like_any_other(cluster_run: Path) -> None:
    checkpoint = read_checkpoint(cluster_run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 4
    assert not [n for n in checkpoint["state_dict"] if ".features." in n or ".clip." in n]
    moments = checkpoint["optimizer_states"][0]["state"]
    assert len(moments) == len(checkpoint["state_dict"])
    assert {type(value) for value in checkpoint["state_dict"].values()} == {torch.Tensor}
    assert (cluster_run / "finished.json").is_file()


def test_a_run_of_several_machines_goes_on_as_if_undisturbed(
    cluster_run: Path, scene_shards: Path, tmp_path: Path
) -> None:
    middle = cluster_run / "checkpoints" / "step_2.ckpt"
    train(scene_shards, tmp_path, f"ckpt={middle}")
    whole, resumed = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (cluster_run, tmp_path))
    assert resumed["global_step"] == whole["global_step"] == 4
    start = read_checkpoint(middle)["state_dict"]
    assert not all(torch.equal(start[name], value) for name, value in whole["state_dict"].items())
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    for index, state in whole["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(resumed["optimizer_states"][0]["state"][index][name], value)
    again = [(tmp_path / f"seen_{rank}.txt").read_text() for rank in range(4)]
    assert all(
        (cluster_run / f"seen_{rank}.txt").read_text().endswith(text) for rank, text in enumerate(again)
    )


def test_evaluation_on_several_machines_gives_the_numbers_of_one(
    cluster_run: Path, scene_shards: Path, tmp_path: Path
) -> None:
    """Started as Slurm does it; the one device reads the same checkpoint."""
    from odise_pl.evaluation.evaluate import evaluate

    common = [f"ckpt={cluster_run}/checkpoints/last.ckpt", "data=shards", f"data.val={scene_shards}"]
    common += ["data.num_workers=0", "data.eval_batch_size=3"]
    sharded = [name for name in SMALL if name.startswith("trainer")]
    ranks.run(ranks.slurm, 2, 2, ["evaluate.py", *common, *sharded, f"hydra.run.dir={tmp_path}/four"])
    alone = [*common, "trainer=cpu", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(ranks.ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", ["run=test", f"run_dir={tmp_path}/one", *alone])
    evaluate(config, alone)
    four, one = (next((tmp_path / name).glob("evaluation/*/val/results.json")) for name in ("four", "one"))
    found, expected = (json.loads(path.read_text()) for path in (four, one))
    assert found.pop("about") == expected.pop("about")
    assert found == expected
    assert found["images"] == 8
    assert found["scores"]["miou"] > 0
