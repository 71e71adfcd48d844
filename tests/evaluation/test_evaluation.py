"""Evaluation on the benchmarks of the paper with a network, through the entry point."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_shards import BENCHMARKS
from interruptions import run, started, wait_for
from trained import ROOT, composed

from odise_pl.errors import SettingError
from odise_pl.evaluation.coco_results import PredictionError
from odise_pl.runs.checks import check_evaluation


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
    """The JSON of every set of the only evaluation."""
    paths = run_dir.glob("evaluation/*/*/results.json")
    found = {path.parent.name: json.loads(path.read_text()) for path in paths}
    for content in found.values():
        content.pop("about")
    return found


SIX = f"data=[{','.join(BENCHMARKS)}]"


@pytest.fixture(scope="module")
def whole(checkpoint: Path, benchmark_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six in one command; the predictions are kept."""
    from odise_pl.evaluation.evaluate import evaluate

    folder = tmp_path_factory.mktemp("whole")
    overrides = options(checkpoint, benchmark_shards, SIX, f"save_predictions={folder / 'predictions'}")
    scores = evaluate(composed("evaluate", folder, overrides), overrides)
    assert list(scores) == list(BENCHMARKS)
    return folder


def test_sets_and_folders_of_any_name(checkpoint: Path, scene_shards: Path, tmp_path: Path) -> None:
    """They are evaluated, their predictions kept under their names, and found there again."""
    from odise_pl.evaluation.evaluate import evaluate, score_predictions

    names = {"münchen": "münchen", "${x}": "x", "2024_1": "2024_1", "20241": "20241", "[b]": "b"}
    for folder in names:
        (tmp_path / folder).symlink_to(scene_shards)
    data = f"data={[str(tmp_path / folder) for folder in names]}"
    kept, run_dir = tmp_path / "kept [1], 数据", tmp_path / "run 1e3"
    overrides = options(checkpoint, tmp_path, data, f"save_predictions='{kept}'", "data.limit_samples=2")
    scores = evaluate(composed("evaluate", run_dir, overrides), overrides)
    assert set(scores) == set(names.values())
    assert set(results(run_dir)) == set(names.values()) == {path.name for path in kept.iterdir()}
    (table,) = run_dir.glob("evaluation/*/results.md")
    assert table.parent.name.startswith("münchen+x+2024_1+20241+b-")
    assert all(f"| {name} |" in table.read_text(encoding="utf-8") for name in names.values())
    scored = composed("evaluate", tmp_path / "scored", [f"predictions={kept}", *overrides[1:3], data,
                      "data.num_workers=0", "data.limit_samples=2", "trainer=cpu"])  # fmt: skip
    check_evaluation(scored)
    assert score_predictions(scored).keys() == scores.keys()


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


def test_one_table_with_published_numbers(whole: Path) -> None:
    (folder,) = whole.glob("evaluation/*")
    assert folder.name == "coco+ade150+ade847+pc59+pc459+pas21-both-step_4"
    with (folder / "results.csv").open() as file:
        rows = {row["data"]: row for row in csv.DictReader(file)}
    assert [name for name in rows if "," not in name] == list(BENCHMARKS)
    coco = rows["coco"]
    assert (coco["PQ paper"], coco["mAP paper"], coco["mIoU paper"]) == ("55.4", "46.0", "65.2")
    voc = rows["pas21"]
    assert (voc["PQ paper"], voc["PQ"], voc["mIoU paper"]) == ("", "", "84.6")
    written = json.loads((folder / "results.json").read_text())
    assert written["published_percent"]["ade847"] == {"miou": 11.1}
    found = results(whole)
    assert written["scores"] == {name: found[name]["scores"] for name in BENCHMARKS}
    assert "| ade847 |" in (folder / "results.md").read_text()
    assert not (folder / ".progress").exists()
    assert json.loads((folder / "finished.json").read_text())["scores"] == written["scores"]


def test_two_ranks_give_exactly_the_result_of_one(
    whole: Path, checkpoint: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    some = ("coco", "ade150", "pc59", "pas21")
    arguments = options(checkpoint, benchmark_shards, f"data=[{','.join(some)}]", "trainer.devices=2")
    command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={tmp_path}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Evaluation (%)" in done.stdout
    assert results(tmp_path) == {name: result for name, result in results(whole).items() if name in some}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_ranks_that_are_asked_to_end_go_on_with_the_same_command(
    number: signal.Signals, whole: Path, checkpoint: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    """Both save what they have done and are gone; the digits are those of one rank without a break."""
    some = ("coco", "ade150", "pc59")
    more = ["trainer.devices=2", "save_every=0", f"save_predictions={tmp_path / 'predictions'}"]
    arguments = options(checkpoint, benchmark_shards, f"data=[{','.join(some)}]", *more)
    with started(tmp_path, arguments, "evaluate.py") as process:
        wait_for(lambda: any(tmp_path.glob("evaluation/*/.progress/coco/rank*.pt")), process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number, (tmp_path / "output.txt").read_text()
        wait_for_end(process.pid)
    output = (tmp_path / "output.txt").read_text()
    assert f"stopped by {number.name}: what is done is saved" in output
    assert "Traceback" not in output
    assert not results(tmp_path).keys() >= set(some), "it was stopped before the end"
    done = run(tmp_path, *arguments, script="evaluate.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batches are done, going on" in done.stdout or "is finished: taken from" in done.stdout
    assert results(tmp_path) == {name: result for name, result in results(whole).items() if name in some}


def wait_for_end(group: int, seconds: float = 20) -> None:
    """Of all processes of a group."""
    limit = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < limit:
            os.killpg(group, 0)
            time.sleep(0.1)
        pytest.fail("a rank is left")


def test_every_number_of_ranks_computes_with_the_same_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums depend on it; Lightning divides the processors among ranks if the environment is silent."""
    from odise_pl.evaluation.evaluate import evaluate

    monkeypatch.delenv("OMP_NUM_THREADS")
    evaluate._trainer(composed("evaluate", tmp_path, ["trainer=cpu", "trainer.devices=2"]))
    assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())


def test_saved_predictions_score_the_same(whole: Path, benchmark_shards: Path, tmp_path: Path) -> None:
    from odise_pl.evaluation.evaluate import score_predictions

    overrides = [
        f"predictions={whole / 'predictions'}",
        f"paths.shards={benchmark_shards}",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        SIX,
    ]
    scores = score_predictions(composed("evaluate", tmp_path, overrides))
    base_and_novel = ("_base", "_novel")  # nobody knows what a folder's model was trained on
    for name, result in results(whole).items():
        expected = {k: v for k, v in result["scores"].items() if not k.endswith(base_and_novel)}
        assert scores[name] == expected


def test_taken_folders_are_refused_before_anything_is_predicted(
    checkpoint: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    from odise_pl.evaluation.evaluate import evaluate

    taken = tmp_path / "predictions" / "pas21"
    taken.mkdir(parents=True)
    (taken / "panoptic.json").write_text("{}")
    overrides = options(checkpoint, benchmark_shards, "data=[coco,pas21]", f"save_predictions={taken.parent}")
    with pytest.raises(PredictionError, match="pas21 holds predictions already"):
        evaluate(composed("evaluate", tmp_path / "run", overrides), overrides)
    assert not (tmp_path / "run").exists()
    assert not (taken.parent / "coco").exists()


def test_names_and_places_mix_and_classes_get_other_names(
    checkpoint: Path, benchmark_shards: Path, scene_shards: Path, tmp_path: Path
) -> None:
    """A user's own open set beside a benchmark."""
    from odise_pl.evaluation.evaluate import evaluate

    names = tmp_path / "names.txt"
    names.write_text("0:ball,sphere\n1:crate\n2:heavens:stuff\n3:field,meadow:stuff\n")
    overrides = options(
        checkpoint,
        benchmark_shards,
        "data=pas21",
        f"+data.val.{scene_shards.name}={scene_shards}",
        f"vocabulary.eval={{{scene_shards.name}: {names}}}",
    )
    evaluate(composed("evaluate", tmp_path, overrides), overrides)
    found = results(tmp_path)
    assert set(found) == {"pas21", scene_shards.name}
    rows = found[scene_shards.name]["per_class"]
    assert [row["class"] for row in rows] == ["ball", "crate", "heavens", "field"]
    assert all(row["seen"] for row in rows), "they are known by the data set's own names"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"give ckpt=PATH, or predictions=DIR"),
        (["ckpt=a", "predictions=b"], r"give ckpt=PATH, or predictions=DIR"),
        (["predictions=nowhere"], r"predictions=nowhere: there is no such folder"),
        (["predictions=tests", "save_predictions=x"], r"save_predictions: predictions=DIR are there already"),
        (["ckpt=nothing.ckpt"], r"nothing\.ckpt is not there"),
        (["ckpt=a", "data=ade847"], r"ade847_val.*prepare ade847 --root DOWNLOADS --out"),
        (["ckpt=a", "vocabulary=[dog,dog]"], r"vocabulary\.eval: .*same name"),
        (["ckpt=a", "captioner=heuristic", "captioner.vocabulary=x.txt"], r"captioner\.vocabulary: .*x\.txt"),
        (["ckpt=last"], r"last\.ckpt is not there; in a sweep, .*name the file"),
        (["ckpt=a", f"save_predictions={__file__}"], r"save_predictions=.*is a file, not a folder; choose"),
        (["ckpt=a", "data=shards", "data.val=x/my_open"], r"prepare coco --root COCO --split val2017"),
    ],
)
def test_what_cannot_start_says_so(given: list[str], message: str, tmp_path: Path) -> None:
    config = composed("evaluate", tmp_path, [f"paths.shards={tmp_path}", *given])
    with pytest.raises(SettingError, match=message):
        check_evaluation(config)
