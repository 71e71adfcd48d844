"""Sweeps with a small model: every setting trains and evaluates, finished runs are skipped, reports."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import fake_slurm
import pytest
import tiny_blip
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from scenes import CAPTIONS, make_scenes

from odise_pl.data.prepare.command import main as prepare
from odise_pl.runs.report import main as report

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


def run(script: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *arguments]
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False, env=environment
    )


def sweep(shards: Path, folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.sweep.dir={folder}"]
    return run("train.py", "-m", *TINY, *data, *arguments, path=path)


def markers(folder: Path) -> dict[str, float]:
    """When each run of a sweep came to its end."""
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("finished.json")
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes with people's captions and a generated one."""
    folder = tmp_path_factory.mktemp("captioned")
    make_scenes(folder / "coco", 8, captions=[CAPTIONS] * 8)
    common = ["--workers", "1"]
    packed = ["coco", "--root", str(folder / "coco"), "--split", "train2017", *common]
    assert prepare([*packed, "--out", str(folder / "packed")]) == 0
    model = ["--weights", str(tiny_blip.save(folder / "blip")), "--device", "cpu"]
    captions = ["captions", "--shards", str(folder / "packed"), *model, *common]
    assert prepare([*captions, "--out", str(folder / "shards")]) == 0
    return folder / "shards"


CAPTIONERS = ("empty", "heuristic", "blip", "implicit")
GRID = [
    "experiment=[laptop,ablation_timestep]",
    "backbone.timesteps=[0],learnable",
    f"captioner={','.join(CAPTIONERS)}",
]


@pytest.fixture(scope="module")
def swept(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps by four captioners."""
    folder = tmp_path_factory.mktemp("sweep")
    done = sweep(shards, folder, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_setting_leaves_a_finished_run(swept: Path) -> None:
    wanted = {f"captioner={c},timesteps={t}" for c in CAPTIONERS for t in ("[0]", "learnable")}
    assert set(markers(swept)) == wanted
    content = json.loads((swept / "captioner=empty,timesteps=learnable" / "finished.json").read_text())
    assert content["settings"] == {
        "model": "caption", "timesteps": "learnable", "learnable_time": True, "captioner": "empty",
        "classifier": "both",
    }  # fmt: skip
    assert 0 <= content["scores"]["val"]["pq"] <= 1


def test_a_sweep_ends_in_one_table(swept: Path, tmp_path: Path) -> None:
    assert report([str(swept), "--out", str(tmp_path)]) == 0
    rows = table(tmp_path / "all_runs.csv")
    assert len(rows) == 8
    assert {(row["timesteps"], row["captioner"]) for row in rows} == {
        (steps, captioner) for steps in ("0", "learnable") for captioner in CAPTIONERS
    }
    assert all(float(row["val mIoU"]) >= 0 for row in rows)


def composed(name: str, folder: Path, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, ["run=test", f"run_dir='{folder}'", *overrides])


def check_evaluation(run_dir: Path, shards: Path) -> None:
    """A run's checkpoint gives the scores that the run ended with."""
    from odise_pl.evaluation.evaluate import evaluate

    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0"]
    overrides = [*data, "trainer=cpu", f"ckpt='{run_dir / 'checkpoints' / 'last.ckpt'}'"]
    (result,) = evaluate(composed("evaluate", run_dir, overrides), overrides).values()
    trained = json.loads((run_dir / "finished.json").read_text())["scores"]["val"]
    assert result == pytest.approx(trained)


@pytest.mark.parametrize("captioner", CAPTIONERS)
def test_every_run_evaluates_from_its_checkpoint(swept: Path, shards: Path, captioner: str) -> None:
    for steps in ("[0]", "learnable"):
        check_evaluation(swept / f"captioner={captioner},timesteps={steps}", shards)


@pytest.mark.parametrize(("steps", "captioner"), [
    ("[100]", ["captioner=heuristic", "captioner.learnable_time=true"]),
    ("[500]", ["captioner=empty", "captioner.learnable_time=true"]),
    ("[0,100,200]", ["captioner=blip", "captioner.learnable_time=true"]),
    ("[0,100,200]", ["captioner=implicit", "captioner.learnable_time=false"]),
    ("[0]", ["captioner=blip", "captioner.on_the_fly=true"]),
])  # fmt: skip
def test_other_settings_train_and_evaluate(
    shards: Path, tmp_path: Path, steps: str, captioner: list[str]
) -> None:
    from odise_pl.training.run import train

    model = [f"captioner.weights={shards.parent / 'blip'}"] if "captioner=blip" in captioner else []
    settings = ["experiment=laptop", *TINY, f"backbone.timesteps={steps}", *captioner, *model]
    train(composed("train", tmp_path, [*settings, f"data.train={shards}", f"data.val={shards}"]))
    check_evaluation(tmp_path, shards)


def test_finished_runs_are_skipped_and_others_go_on(swept: Path, shards: Path) -> None:
    before = markers(swept)
    stopped = "captioner=empty,timesteps=[0]"
    (swept / stopped / "finished.json").unlink()  # as if it had been stopped after its last checkpoint
    done = sweep(shards, swept, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is finished: skipped") == 7
    after = markers(swept)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {stopped}


def test_one_checkpoint_evaluates_with_every_classifier(swept: Path, shards: Path, tmp_path: Path) -> None:
    ckpt = swept / "captioner=implicit,timesteps=learnable" / "checkpoints" / "last.ckpt"
    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0", "trainer=cpu"]
    arguments = ["experiment=ablation_classifier", *data, f"ckpt='{ckpt}'", f"hydra.sweep.dir={tmp_path}"]
    done = run("evaluate.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    classifiers = {"discriminative", "diffusion", "both"}
    assert {name.split("/")[0] for name in markers(tmp_path)} == {f"classifier={c}" for c in classifiers}
    assert len(markers(tmp_path)) == 3
    assert report([str(tmp_path)]) == 0
    rows = table(tmp_path / "report" / "all_runs.csv")
    assert {row["classifier"] for row in rows} == classifiers
    again = run("evaluate.py", *arguments)
    assert again.stdout.count("is finished: skipped") == 3


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(swept: Path, shards: Path) -> None:
    done = sweep(shards, swept, *GRID, "captioner=empty", "optimizer.lr=0.5")
    assert done.returncode == 1
    assert "holds a finished run with other settings; name another with run=NAME" in done.stderr


def test_a_sweep_is_refused_before_its_first_run(shards: Path, tmp_path: Path) -> None:
    bad = ["backbone.timesteps=[0],[1000],[]", "captioner=empty,blip", f"data.val={shards.parent / 'packed'}"]
    done = sweep(shards, tmp_path, "experiment=laptop", *bad)
    assert done.returncode == 1
    assert "error: cannot start the sweep:" in done.stderr
    assert "backbone.timesteps=[1000]: give different whole numbers in 0..999" in done.stderr
    assert "backbone.timesteps=[]: give different" in done.stderr
    blip = [line for line in done.stderr.splitlines() if "backbone.timesteps=[0] captioner=blip" in line]
    assert len(blip) == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("checkpoints"))


def test_one_run_that_fails_does_not_stop_the_others(shards: Path, tmp_path: Path) -> None:
    # that there are not so many names is found out when the network is built
    swept = ["captioner=heuristic", "captioner.top=2,500,3", "seed=5"]
    done = sweep(shards, tmp_path, "experiment=laptop", *swept)
    assert done.returncode == 1
    assert "captioner.top=500 must lie in 1..133" in done.stderr
    # named by what is swept
    assert set(markers(tmp_path)) == {"captioner.top_2", "captioner.top_3"}


@pytest.mark.slow
def test_a_sweep_on_slurm_is_one_job_array(shards: Path, tmp_path: Path) -> None:
    """Through submitit's own files and processes; the commands of Slurm are stand-ins of a few lines."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    script = fake_slurm.install(tmp_path / "bin")
    options = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90"]
    few = ["experiment=[laptop,ablation_captioner]", "captioner=empty,implicit"]
    done = sweep(shards, tmp_path / "runs", *few, *options, path=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    asked = set(script.read_text().splitlines())
    for option in ("array=0-1%2", "gpus-per-node=1", "ntasks-per-node=1", "nodes=1", "partition=gpu",
                   "time=90", "cpus-per-task=8", "job-name=odise_pl"):  # fmt: skip
        assert f"#SBATCH --{option}" in asked
    assert set(markers(tmp_path / "runs")) == {f"captioner={c},timesteps=[0]" for c in ("empty", "implicit")}


@pytest.mark.slow
def test_the_papers_grid_ends_in_one_table(shards: Path, tmp_path: Path) -> None:
    """Six settings of the diffusion step by four captioners, through the commands of the README."""
    grid = ["experiment=[laptop,ablation_timestep]", f"captioner={','.join(CAPTIONERS)}"]
    done = sweep(shards, tmp_path, *grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report([str(tmp_path)]) == 0
    rows = table(tmp_path / "report" / "all_runs.csv")
    assert len(rows) == 24
    steps = ("0", "100", "200", "500", "0+100+200", "learnable")
    wanted = {(step, captioner) for step in steps for captioner in CAPTIONERS}
    assert {(row["timesteps"], row["captioner"]) for row in rows} == wanted
    by_step = table(tmp_path / "report" / "timestep.csv")
    assert [row["timestep"] for row in by_step] == list(steps)
    assert all(row["val PQ"] != "-" for row in by_step)
