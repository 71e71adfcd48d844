"""Evaluation of a network on the paper's benchmarks, through the entry point."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_shards import LAYOUTS
from interruptions import run, started, wait_for
from omegaconf import DictConfig, OmegaConf
from ranks import free_port, torchrun
from small_runs import composed
from torch import multiprocessing

from odise_pl.errors import SettingError
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.run import _trainer, evaluate, main, score_predictions
from odise_pl.runs.finished import find_runs


def options(checkpoint: Path, shards: Path, *more: str) -> list[str]:
    return [
        f"ckpt={checkpoint}",
        f"paths.shards={shards}",
        "data.num_workers=0",
        "data.eval_batch_size=2",  # of three images: the last batch is smaller, and one rank has it
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        *more,
    ]


def results(run_dir: Path) -> dict[str, Any]:
    """The JSON results of each set of the only evaluation."""
    paths = run_dir.glob("evaluation/*/*/results.json")
    found = {path.parent.name: json.loads(path.read_text()) for path in paths}
    for content in found.values():
        content.pop("about")
    return found


SIX = f"data=[{','.join(LAYOUTS)}]"


@pytest.fixture(scope="module")
def whole(checkpoint: Path, benchmark_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six benchmarks in one command, with saved predictions."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = options(checkpoint, benchmark_shards, SIX, f"save_predictions={folder / 'predictions'}")
    scores = evaluate(composed("evaluate", folder, overrides), overrides)
    assert list(scores) == list(LAYOUTS)
    return folder


def test_six_benchmarks_in_one_command(whole: Path) -> None:
    found = results(whole)
    classes = {"coco": 133, "ade150": 150, "ade847": 847, "pc59": 59, "pc459": 459, "pas21": 21}
    assert found.keys() == classes.keys()
    for name, result in found.items():
        assert (result["images"], result["left_out"]) == (3, 0)
        assert len(result["per_class"]) == classes[name]
        assert (result["panoptic"] is None) == (name not in ("coco", "ade150"))
        assert (result["instances"] is None) == (name not in ("coco", "ade150"))
        assert 0 <= result["semantic"]["miou"] <= 1
    assert any(result["semantic"]["miou"] > 0 for result in found.values())
    seen = {row["class"] for row in found["ade150"]["per_class"] if row["seen"]}
    assert seen == {"sky", "field", "ball", "box"}, "the names of the training classes"


def test_table_has_published_numbers(whole: Path) -> None:
    (folder,) = whole.glob("evaluation/*")
    assert folder.name == "coco+ade150+ade847+pc59+pc459+pas21-both-step_4"
    with (folder / "results.csv").open() as file:
        rows = {row["data"]: row for row in csv.DictReader(file)}
    assert [name for name in rows if "," not in name] == list(LAYOUTS)
    coco = rows["coco"]
    assert (coco["PQ paper"], coco["mAP paper"], coco["mIoU paper"]) == ("55.4", "46.0", "65.2")
    voc = rows["pas21"]
    assert (voc["PQ paper"], voc["PQ"], voc["mIoU paper"]) == ("", "", "84.6")
    written = json.loads((folder / "results.json").read_text())
    assert written["published_percent"]["ade847"] == {"miou": 11.1}
    found = results(whole)
    assert written["scores"] == {name: found[name]["scores"] for name in LAYOUTS}
    assert "| ade847 |" in (folder / "results.md").read_text()
    assert not (folder / ".progress").exists()
    assert json.loads((folder / "finished.json").read_text())["scores"] == written["scores"]


def test_shortened_evaluations_are_recorded(checkpoint: Path, benchmark_shards: Path, tmp_path: Path) -> None:
    """They are no evaluation of the whole set, neither in its folder nor in a report."""
    limits = ([], ["+trainer.limit_val_batches=1"])
    for limit in limits:
        overrides = options(checkpoint, benchmark_shards, "data=pas21", *limit)
        evaluate(composed("evaluate", tmp_path, overrides), overrides)
    assert len([*tmp_path.glob("evaluation/*")]) == 2
    found = {run.conditions["trainer.limit_val_batches"] for run in find_runs(tmp_path)}
    assert found == {"1.0", "1"}


def test_settings_of_the_checkpoints_backbone_need_no_plus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backbone.second.weights=other.pth", "+backbone.first.taps=null", "backbone.weights=random"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *words, "--cfg", "job", "--package", "backbone"])
    main()
    found = OmegaConf.create(capsys.readouterr().out)
    assert (found.second.weights, found.weights) == ("other.pth", "random")


SOME = ("coco", "pas21")


def one_rank(rank: int, port: int, checkpoint: Path, shards: Path, run_dir: Path) -> None:
    """Run one of two ranks as torchrun does."""
    os.environ |= torchrun(0, rank, 1, 2) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    overrides = options(checkpoint, shards, f"data=[{','.join(SOME)}]", "trainer.devices=2")
    evaluate(composed("evaluate", run_dir, overrides), overrides)


@pytest.mark.slow
def test_two_ranks_equal_one(
    whole: Path,
    checkpoint: Path,
    benchmark_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They resume an evaluation on one rank that was interrupted in the second set."""
    add, added = Progress.add, []

    def interrupted(*arguments: Any) -> None:
        if len(added) == 3:
            raise RuntimeError("killed")
        added.append(add(*arguments))

    overrides = options(checkpoint, benchmark_shards, f"data=[{','.join(SOME)}]")
    monkeypatch.setattr(Progress, "add", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(composed("evaluate", tmp_path, overrides), overrides)
    monkeypatch.undo()
    # forked, because importing torch and lightning again is slow
    arguments = (free_port(), checkpoint, benchmark_shards, tmp_path)
    multiprocessing.start_processes(one_rank, arguments, nprocs=2, start_method="fork")
    assert results(tmp_path) == {name: result for name, result in results(whole).items() if name in SOME}


@pytest.mark.slow
def test_two_interrupted_ranks_resume(
    whole: Path, checkpoint: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    """Both save progress and exit; the final result is that of one uninterrupted rank."""
    some = ("coco", "ade150", "pc59")
    more = ["trainer.devices=2", f"save_predictions={tmp_path / 'predictions'}"]
    arguments = options(checkpoint, benchmark_shards, f"data=[{','.join(some)}]", *more)
    with started(tmp_path, arguments, "evaluate.py") as process:
        wait_for(lambda: any(tmp_path.glob("evaluation/*/.progress/coco/*/*.json")), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "output.txt").read_text()
        wait_for_exit(process.pid)
    output = (tmp_path / "output.txt").read_text()
    assert "stopped by SIGINT" in output
    assert "Traceback" not in output
    assert not results(tmp_path).keys() >= set(some), "interrupted before the end"
    done = run(tmp_path, *arguments, script="evaluate.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batches are done, resuming" in done.stdout or "is finished: skipped" in done.stdout
    assert results(tmp_path) == {name: result for name, result in results(whole).items() if name in some}


def wait_for_exit(group: int, seconds: float = 20) -> None:
    """Wait until all processes of a group have exited."""
    limit = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < limit:
            os.killpg(group, 0)
            time.sleep(0.1)
        pytest.fail("a rank is still running")


def test_number_of_threads_is_independent_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums depend on it, and Lightning divides the CPUs among ranks by default."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    _trainer(composed("evaluate", tmp_path, ["trainer=cpu", "trainer.devices=2"]))
    assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())


def test_saved_predictions_have_the_same_scores(whole: Path, benchmark_shards: Path, tmp_path: Path) -> None:
    overrides = [
        f"predictions={whole / 'predictions'}",
        f"paths.shards={benchmark_shards}",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        SIX,
    ]
    scores = score_predictions(composed("evaluate", tmp_path, overrides))
    base_and_novel = ("_base", "_novel", "_harmonic")  # unknown for a folder of predictions
    for name, result in results(whole).items():
        expected = {k: v for k, v in result["scores"].items() if not k.endswith(base_and_novel)}
        assert scores[name] == expected


@pytest.mark.parametrize(
    ("setting", "named"), [("+data.unseen=[cat]", r"data\.unseen"), ("method=fc_clip", "method=")]
)
def test_checkpoint_knows_its_classes_and_method(
    checkpoint: Path, benchmark_shards: Path, setting: str, named: str, tmp_path: Path
) -> None:
    overrides = options(checkpoint, benchmark_shards, "data=pas20", setting)
    with pytest.raises(SettingError, match=named):
        evaluate(composed("evaluate", tmp_path, overrides), overrides)


def test_own_sets_may_have_any_name_and_other_class_names(
    checkpoint: Path, scene_shards: Path, tmp_path: Path
) -> None:
    """Their saved predictions are found again."""
    names = tmp_path / "names.txt"
    names.write_text("0:ball,sphere\n1:crate\n2:heavens:stuff\n3:field,meadow:stuff\n")
    sets = {"münchen": "[b]", "2024_1": "2024 1"}
    for folder in sets.values():
        (tmp_path / folder).symlink_to(scene_shards)
    kept, run_dir = tmp_path / "kept [1], 数据", tmp_path / "run 1e3"

    def config(folder: Path, *more: str) -> DictConfig:
        made = composed("evaluate", folder, list(more))
        made.vocabulary.eval = {"2024_1": str(names)}
        made.data.val = {name: str(tmp_path / folder) for name, folder in sets.items()}
        return made

    few = ["data=shards", "data.limit_samples=2"]
    overrides = options(checkpoint, tmp_path, *few, f"save_predictions='{kept}'")
    scores = evaluate(config(run_dir, *overrides), overrides)
    found = results(run_dir)
    assert set(found) == set(sets) == {path.name for path in kept.iterdir()}
    (table,) = run_dir.glob("evaluation/*/results.md")
    assert table.parent.name.startswith("münchen+2024_1-")
    assert all(f"| {name} |" in table.read_text(encoding="utf-8") for name in sets)
    rows = found["2024_1"]["per_class"]
    assert [row["class"] for row in rows] == ["ball", "crate", "heavens", "field"]
    assert all(row["seen"] for row in rows), "matched by the data set's names"
    given = [*few, f"predictions='{kept}'", "data.num_workers=0", "trainer=cpu"]
    assert score_predictions(config(tmp_path / "scored", *given)).keys() == scores.keys()
