"""Sweeps with a small model: train, evaluate, skip finished runs, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_blip
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from scenes import CAPTIONS, make_scenes
from small_runs import composed

from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare.captions import CaptionModel, prepare_captions
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.evaluation import run as evaluation
from odise_pl.runs.finished import find_runs, read_run
from odise_pl.training import run as train

TINY = [
    "model=odise_caption",
    "data.num_workers=0",
    "data.augment=none",
    "data.image_size=64",
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
STOPPED, FINISHED = (f"captioner=blip,timesteps={steps}" for steps in ("[0]", "learnable"))


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


@pytest.fixture
def programs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(capfd, monkeypatch)


def sweep_arguments(shards: Path, folder: Path, *more: str) -> list[str]:
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.sweep.dir={folder}"]
    return ["-m", *TINY, *data, *more]


def grid(shards: Path, folder: Path, *more: str) -> list[str]:
    varied = ["backbone.timesteps=[0],learnable", "captioner=blip"]
    return sweep_arguments(shards, folder, "experiment=[laptop,ablation_timestep]", *varied, *more)


def markers(folder: Path) -> dict[str, float]:
    """The time at which each run of a sweep finished."""
    found = folder.rglob("finished.json")
    return {path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with human and generated captions."""
    folder = tmp_path_factory.mktemp("captioned")
    make_scenes(folder / "coco", 2, captions=[CAPTIONS] * 2)
    prepare(read_coco(folder / "coco", "train2017"), folder / "packed")
    model = CaptionModel(str(tiny_blip.save(folder / "blip")), 20, ("cpu",))
    prepare_captions(open_shard_set(folder / "packed"), folder / "shards", model)
    return folder / "shards"


@pytest.fixture(scope="module")
def swept(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the diffusion."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *grid(shards, folder)])
        train.main()
    return folder


def test_every_combination_finishes(swept: Path) -> None:
    assert set(markers(swept)) == {STOPPED, FINISHED}
    runs = find_runs(swept)
    assert {(s.timesteps, s.captioner, s.backbone) for s in (run.settings for run in runs)} == {
        ("0", "blip", "random"),
        ("learnable", "blip", "random"),
    }
    assert all(0 <= run.scores["val"]["pq"] <= 1 for run in runs)


@pytest.mark.slow
def test_other_captioner_trains_and_evaluates(shards: Path, tmp_path: Path) -> None:
    model = ["captioner=blip", "captioner.on_the_fly=true", f"captioner.weights={shards.parent / 'blip'}"]
    settings = ["experiment=laptop", *TINY, "backbone.timesteps=[0,100]", *model]
    train.train(composed("train", tmp_path, [*settings, f"data.train={shards}", f"data.val={shards}"]))
    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0"]
    overrides = [*data, "trainer=cpu", f"ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}"]
    (result,) = evaluation.evaluate(composed("evaluate", tmp_path, overrides), overrides).values()
    assert result == pytest.approx(read_run(tmp_path).scores["val"])


def test_finished_runs_are_skipped_and_others_resume(swept: Path, shards: Path, programs: Programs) -> None:
    before = markers(swept)
    (swept / STOPPED / "finished.json").unlink()  # as if interrupted after its last checkpoint
    code, shown = programs.run(train.main, *grid(shards, swept))
    assert code == 0, shown
    assert shown.count("is finished: skipped") == 1
    after = markers(swept)
    assert {name for name in after if after[name] != before.get(name)} == {STOPPED}
    code, shown = programs.run(train.main, *grid(shards, swept, "optimizer.lr=0.5"))
    assert code == 1
    assert "finished run with other settings (optimizer.lr 0.001 -> 0.5)" in shown


@pytest.mark.slow
def test_sweep_evaluates_one_checkpoint_with_every_classifier(
    swept: Path, shards: Path, tmp_path: Path, programs: Programs
) -> None:
    ckpt = swept / FINISHED / "checkpoints" / "last.ckpt"
    data = ["data=shards", f"data.val={shards}", "data.limit_samples=2", "data.num_workers=0", "trainer=cpu"]
    arguments = ["experiment=ablation_classifier", *data, f"ckpt='{ckpt}'", f"hydra.sweep.dir={tmp_path}"]
    code, shown = programs.run(evaluation.main, *arguments)
    assert code == 0, shown
    classifiers = {"discriminative", "diffusion", "both"}
    assert {name.split("/")[0] for name in markers(tmp_path)} == {f"classifier={c}" for c in classifiers}
    assert {run.settings.classifier for run in find_runs(tmp_path)} == classifiers
    (both,) = (run for run in find_runs(tmp_path) if run.settings.classifier == "both")
    training = read_run(ckpt.parents[1])
    assert both.scores["val"] == pytest.approx(training.scores["val"])
    assert (both.seed, both.conditions, both.sources) == (0, training.conditions, training.sources)
    trained = OmegaConf.load(ckpt.parents[1] / "config.yaml").fusion
    for path in tmp_path.rglob("config.yaml"):  # only the mode changes
        used = OmegaConf.load(path).network.classifier
        assert {key: used[key] for key in trained} == dict(trained)
    _, shown = programs.run(evaluation.main, *arguments)
    assert shown.count("is finished: skipped") == 3


@pytest.mark.slow
def test_search_maximises_the_score(shards: Path, tmp_path: Path, programs: Programs) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "criterion.no_object_weight=0.1,0.5"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", *space]
    arguments = sweep_arguments(shards, tmp_path, "experiment=laptop", *search)
    code, shown = programs.run(train.main, *arguments)
    assert code == 0, shown
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    runs = find_runs(tmp_path)
    assert len(runs) == 2
    assert best.best_value == pytest.approx(max(100 * run.scores["val"]["pq"] for run in runs))
    assert set(best.best_params) == {"optimizer.lr", "criterion.no_object_weight"}
    code, shown = programs.run(train.main, *arguments)
    assert code == 0, shown
    assert shown.count("is finished: skipped") == 2


@pytest.mark.slow
def test_failed_runs_do_not_stop_the_others(shards: Path, tmp_path: Path, programs: Programs) -> None:
    """One fails in the checks, one when its network is built."""
    swept = ["captioner=heuristic", "captioner.top=500,3", "backbone.timesteps=[1000],[0]", "seed=5"]
    code, shown = programs.run(train.main, *sweep_arguments(shards, tmp_path, "experiment=laptop", *swept))
    assert code == 1
    assert "captioner.top=500" in shown
    assert "backbone.timesteps=[1000]" in shown
    assert "Traceback" not in shown
    assert set(markers(tmp_path)) == {"backbone.timesteps_[0],captioner.top_3"}, "named by what varies"
    assert not list(tmp_path.glob("*1000*/.lock")) + list(tmp_path.glob("*1000*/*.log"))
