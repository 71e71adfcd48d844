"""Sweeps with a small model: train, evaluate, skip finished runs, report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_slurm
import pytest
import tiny_blip
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from scenes import CAPTIONS, make_scenes

from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare.captions import CaptionModel, prepare_captions
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.evaluation import run as evaluation
from odise_pl.runs.command import report
from odise_pl.runs.conf import compose_config
from odise_pl.training import run as train

ROOT = Path(__file__).parents[2]
TINY = [
    "model=odise_caption",
    "data.num_workers=0",
    "data.augment=none",
    "data.limit_samples=2",
    "data.batch_size=2",
    "data.eval_short_side=64",
    "data.eval_long_side=64",
    "global_batch=2",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer.max_steps=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
    "~callbacks.pictures",
]


class Programs:
    """Runs Hydra programs in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capfd, self.monkeypatch = capfd, monkeypatch

    def run(self, main: Callable[[], object], *arguments: str) -> tuple[int, str]:
        """The exit status and the output."""
        self.monkeypatch.setattr("sys.argv", ["program.py", *arguments])
        self.capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            print(error.code)
        except CompactHydraException as error:  # instead of SystemExit where a debugger or coverage looks on
            code = 1
            print(error)
        return code, "".join(self.capfd.readouterr())

    def sweep(self, shards: Path, folder: Path, *arguments: str) -> tuple[int, str]:
        return self.run(train.main, *swept_arguments(shards, folder, *arguments))


def swept_arguments(shards: Path, folder: Path, *arguments: str) -> list[str]:
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.sweep.dir={folder}"]
    return ["-m", *TINY, *data, *arguments]


@pytest.fixture
def programs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(capfd, monkeypatch)


def markers(folder: Path) -> dict[str, float]:
    """The time at which each run of a sweep finished."""
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("finished.json")
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes with human and generated captions."""
    folder = tmp_path_factory.mktemp("captioned")
    make_scenes(folder / "coco", 8, captions=[CAPTIONS] * 8)
    prepare(read_coco(folder / "coco", "train2017"), folder / "packed")
    model = CaptionModel(str(tiny_blip.save(folder / "blip")), 20, ("cpu",))
    prepare_captions(open_shard_set(folder / "packed"), folder / "shards", model)
    return folder / "shards"


CAPTIONERS = ("empty", "blip")
GRID = [
    "experiment=[laptop,ablation_timestep]",
    "backbone.timesteps=[0],learnable",
    f"captioner={','.join(CAPTIONERS)}",
]
NAMES = {f"captioner={c},timesteps={t}" for c in CAPTIONERS for t in ("[0]", "learnable")}


@pytest.fixture(scope="module")
def swept(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps by two captioners."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *swept_arguments(shards, folder, *GRID)])
        train.main()
    return folder


def test_every_combination_finishes(swept: Path, tmp_path: Path) -> None:
    assert set(markers(swept)) == NAMES
    content = json.loads((swept / "captioner=empty,timesteps=learnable" / "finished.json").read_text())
    assert content["settings"] == {
        "model": "caption", "timesteps": "learnable", "learnable_time": True, "captioner": "empty",
        "classifier": "both",
    }  # fmt: skip
    assert 0 <= content["scores"]["val"]["pq"] <= 1
    report(swept, tmp_path)
    rows = table(tmp_path / "all_runs.csv")
    found = {(row["timesteps"], row["captioner"]) for row in rows}
    assert found == {(steps, captioner) for steps in ("0", "learnable") for captioner in CAPTIONERS}
    assert all(float(row["val mIoU"]) >= 0 for row in rows)


def composed(name: str, folder: Path, overrides: list[str]) -> DictConfig:
    return compose_config(name, ["run=test", f"run_dir='{folder}'", *overrides])


def check_evaluation(run_dir: Path, shards: Path) -> None:
    """Evaluating a run's checkpoint gives the scores of its last validation."""
    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0"]
    overrides = [*data, "trainer=cpu", f"ckpt='{run_dir / 'checkpoints' / 'last.ckpt'}'"]
    (result,) = evaluation.evaluate(composed("evaluate", run_dir, overrides), overrides).values()
    trained = json.loads((run_dir / "finished.json").read_text())["scores"]["val"]
    assert result == pytest.approx(trained)


def test_evaluation_of_a_checkpoint_equals_training(swept: Path, shards: Path) -> None:
    check_evaluation(swept / "captioner=blip,timesteps=learnable", shards)


@pytest.mark.parametrize(("steps", "captioner"), [
    ("[100]", ["captioner=heuristic", "captioner.learnable_time=true"]),
    ("[0,100,200]", ["captioner=implicit", "captioner.learnable_time=false"]),
    ("[0]", ["captioner=blip", "captioner.on_the_fly=true"]),
])  # fmt: skip
def test_other_settings_train_and_evaluate(
    shards: Path, tmp_path: Path, steps: str, captioner: list[str]
) -> None:
    model = [f"captioner.weights={shards.parent / 'blip'}"] if "captioner=blip" in captioner else []
    settings = ["experiment=laptop", *TINY, f"backbone.timesteps={steps}", *captioner, *model]
    train.train(composed("train", tmp_path, [*settings, f"data.train={shards}", f"data.val={shards}"]))
    check_evaluation(tmp_path, shards)


def test_finished_runs_are_skipped_and_others_resume(swept: Path, shards: Path, programs: Programs) -> None:
    before = markers(swept)
    stopped = "captioner=empty,timesteps=[0]"
    (swept / stopped / "finished.json").unlink()  # as if interrupted after its last checkpoint
    code, shown = programs.sweep(shards, swept, *GRID)
    assert code == 0, shown
    assert shown.count("is finished: skipped") == 3
    after = markers(swept)
    assert {name for name in after if after[name] != before.get(name)} == {stopped}


def test_sweep_evaluates_one_checkpoint_with_every_classifier(
    swept: Path, shards: Path, tmp_path: Path, programs: Programs
) -> None:
    ckpt = swept / "captioner=blip,timesteps=learnable" / "checkpoints" / "last.ckpt"
    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0", "trainer=cpu"]
    arguments = ["experiment=ablation_classifier", *data, f"ckpt='{ckpt}'", f"hydra.sweep.dir={tmp_path}"]
    code, shown = programs.run(evaluation.main, *arguments)
    assert code == 0, shown
    classifiers = {"discriminative", "diffusion", "both"}
    assert {name.split("/")[0] for name in markers(tmp_path)} == {f"classifier={c}" for c in classifiers}
    assert len(markers(tmp_path)) == 3
    report(tmp_path)
    assert {row["classifier"] for row in table(tmp_path / "report" / "all_runs.csv")} == classifiers
    _, shown = programs.run(evaluation.main, *arguments)
    assert shown.count("is finished: skipped") == 3


def test_finished_run_with_other_settings_is_refused(swept: Path, shards: Path, programs: Programs) -> None:
    code, shown = programs.sweep(shards, swept, *GRID, "captioner=empty", "optimizer.lr=0.5")
    assert code == 1
    assert "finished run with other settings (optimizer.lr 0.001 -> 0.5)" in shown


def test_invalid_sweep_is_refused_before_its_first_run(
    shards: Path, tmp_path: Path, programs: Programs
) -> None:
    bad = ["backbone.timesteps=[0],[1000],[]", "captioner=empty,blip", f"data.val={shards.parent / 'packed'}"]
    code, shown = programs.sweep(shards, tmp_path, "experiment=laptop", *bad)
    assert code == 1
    for word in (
        "backbone.timesteps=[1000]",
        "backbone.timesteps=[]",
        "backbone.timesteps=[0] captioner=blip",
    ):
        assert word in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.rglob("checkpoints"))


def test_failed_run_does_not_stop_the_others(shards: Path, tmp_path: Path, programs: Programs) -> None:
    # found only when the network is built
    swept = ["captioner=heuristic", "captioner.top=500,3", "seed=5"]
    code, shown = programs.sweep(shards, tmp_path, "experiment=laptop", *swept)
    assert code == 1
    assert "captioner.top=500" in shown
    assert set(markers(tmp_path)) == {"captioner.top_3"}, "named by the swept setting"


@pytest.mark.slow
def test_sweep_on_slurm_is_one_job_array(shards: Path, tmp_path: Path) -> None:
    """With submitit's own files and processes, and stand-ins for Slurm's commands."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    script = fake_slurm.install(tmp_path / "bin")
    options = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90"]
    few = ["experiment=[laptop,ablation_captioner]", "captioner=empty,implicit"]
    command = [sys.executable, "train.py", *swept_arguments(shards, tmp_path / "runs", *few, *options)]
    path = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = set(script.read_text().splitlines())
    for option in ("array=0-1%2", "gpus-per-node=1", "ntasks-per-node=1", "nodes=1", "partition=gpu",
                   "time=90", "cpus-per-task=8", "job-name=odise_pl"):  # fmt: skip
        assert f"#SBATCH --{option}" in asked
    assert set(markers(tmp_path / "runs")) == {f"captioner={c},timesteps=[0]" for c in ("empty", "implicit")}
