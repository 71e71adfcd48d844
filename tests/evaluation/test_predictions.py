"""Predictions are written to files, read by this package and the official tools, and scored."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mini_benchmarks as mini
import numpy as np
import pytest
from benchmark_shards import LAYOUTS
from hotcoco.panoptic import PanopticEval
from panoptic_maps import perfect
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_runs import composed

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.prepare.coco_instances import read_coco_instances
from odise_pl.data.prepare.packing import prepare
from odise_pl.evaluation.folder import FolderPredictor
from odise_pl.evaluation.run import score_predictions
from odise_pl.evaluation.writer import PredictionError, PredictionWriter
from odise_pl.structures import Batch, Prediction
from odise_pl.vocabulary import Vocabulary, load_vocabulary


def data(shards: Path, name: str) -> PanopticDataModule:
    return PanopticDataModule(val={name: str(shards)}, num_workers=0, eval_batch_size=2)


def predictions_of(batch: Batch, shift: int = 0) -> list[Prediction]:
    return [perfect(truth, shift) for truth in batch.truths if truth is not None]


def write(shards: Path, name: str, folder: Path, shift: int = 0) -> Path:
    """Write predictions of a set, derived from its truth."""
    module = data(shards, name)
    writer = PredictionWriter(folder, module.vocabulary(name), "digest")
    writer.start()
    images = 0
    for batch in module.eval_loader(name):
        writer.write(batch, predictions_of(batch, shift))
        images += len(batch)
    writer.finish(images)
    writer.clean()
    return folder


def score(shards: Path, predictions: Path, run_dir: Path, *overrides: str) -> dict[str, dict[str, float]]:
    """``odise evaluate predictions=DIR``."""
    fixed = [f"paths.shards={shards}", f"predictions={predictions}", "data.num_workers=0", "trainer=cpu"]
    return score_predictions(
        composed("evaluate", run_dir, [*fixed, "trainer.enable_progress_bar=false", *overrides])
    )


@pytest.fixture(scope="module")
def written(benchmark_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perfect predictions of every benchmark; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "predictions"
    for name, (_, _, out) in LAYOUTS.items():
        write(benchmark_shards / out, name, folder / name)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Perfect predictions of COCO."""
    return Path(shutil.copytree(written / "coco", tmp_path / "predictions"))


@pytest.fixture(scope="module")
def batches(benchmark_shards: Path) -> list[Batch]:
    return list(data(benchmark_shards / "coco_val2017", "coco").eval_loader("coco"))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("coco_panoptic")


def test_perfect_predictions_score_one_on_every_benchmark(
    written: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    found = score(benchmark_shards, written, tmp_path, f"data=[{','.join(LAYOUTS)}]")
    assert found.keys() == LAYOUTS.keys()
    assert {value for scores in found.values() for value in scores.values()} == {1.0}
    assert set(found["pas21"]) == {"miou"}
    assert {"pq", "map", "miou"} <= set(found["ade150"])


def test_files_keep_large_ids_and_category_ids(written: Path) -> None:
    content = json.loads((written / "coco/panoptic.json").read_text())
    segments = [segment for a in content["annotations"] for segment in a["segments_info"]]
    assert max(segment["id"] for segment in segments) == 9_000_123
    assert {segment["category_id"] for segment in segments} == {1, 90, 149, 200}
    maps = [np.asarray(Image.open(path)) for path in (written / "ade847/semantic").iterdir()]
    assert {int(value) for values in maps for value in np.unique(values)} == {0, 300, 846, 65535}


def test_panoptic_quality_equals_hotcoco(benchmark_shards: Path, tmp_path: Path) -> None:
    """hotcoco follows panopticapi; it reads our files and the original annotation."""
    folder = write(benchmark_shards / "coco_val2017", "coco", tmp_path / "all" / "coco", shift=4)
    found = score(benchmark_shards, tmp_path / "all", tmp_path, "data=coco")["coco"]
    truth = benchmark_shards.parent / "downloads" / "coco" / "annotations" / "panoptic_val2017.json"
    evaluation = PanopticEval(truth, folder / "panoptic.json")
    evaluation.evaluate()
    expected = evaluation.results()
    assert 0 < found["pq"] < 1
    for key, part in (("pq", "All"), ("pq_things", "Things"), ("pq_stuff", "Stuff")):
        assert found[key] == pytest.approx(expected[part]["pq"], abs=1e-9, rel=0)


def test_average_precision_equals_pycocotools(tmp_path: Path) -> None:
    """The objects of the original annotation overlap."""
    mini.coco_instances(tmp_path / "root")
    prepare(read_coco_instances(tmp_path / "root", "val2017"), tmp_path / "shards")
    write(tmp_path / "shards", "mine", tmp_path / "all", shift=3)
    shards = f"+data.val.mine={tmp_path / 'shards'}"
    found = score(tmp_path, tmp_path / "all", tmp_path, "data=shards", shards)["mine"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "root" / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "all" / "instances.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0 < found["map"] < 1
    assert (found["map"], found["ap50"]) == pytest.approx(tuple(evaluation.stats[:2]), abs=1e-9, rel=0)
    assert set(found) == {"map", "ap50"}


def test_measures_without_predictions_are_skipped(
    benchmark_shards: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PredictionError, match="predictions/coco has no predictions"):
        score(benchmark_shards, folder, tmp_path, "data=[coco,pas21]")  # several sets need a folder each
    (folder / "panoptic.json").unlink()
    shutil.rmtree(folder / "semantic")
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"] == {"map": 1.0, "ap50": 1.0}
    (folder / "instances.json").unlink()
    with pytest.raises(PredictionError, match=r"no predictions: .*panoptic\.json"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_predictions_of_another_set_are_refused(benchmark_shards: Path, folder: Path, tmp_path: Path) -> None:
    in_instances(lambda c: c.append({**c[0], "image_id": 77}))(folder)
    with pytest.raises(PredictionError, match=r"predictions/instances\.json: 1 images .*image_id 77"):
        score(benchmark_shards, folder, tmp_path, "data=coco")
    in_panoptic(lambda c: c["annotations"][1]["segments_info"].pop())(folder)
    with pytest.raises(PredictionError, match=r"coco: .*image 2: .*9000123"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


Edit = Callable[[Path], object]


def change(name: str, edit: Callable[[Any], object], folder: Path) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def in_panoptic(edit: Callable[[Any], object]) -> Edit:
    return partial(change, "panoptic.json", edit)


def in_annotation(**values: Any) -> Edit:
    """Change the second annotation of panoptic.json."""
    return in_panoptic(lambda content: content["annotations"][1].update(values))


def in_instances(edit: Callable[[Any], object]) -> Edit:
    return partial(change, "instances.json", edit)


def in_result(**values: Any) -> Edit:
    """Change the first entry of instances.json."""
    return in_instances(lambda content: content[0].update(values))


def replaced(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PANOPTIC_2, SEMANTIC_2 = "panoptic/000000000002.png", "semantic/000000000002.png"
FAULTS: list[tuple[str, Edit]] = [
    (r"panoptic\.json: .*JSON", replaced("panoptic.json", b"{")),
    (r"panoptic\.json: .*annotations", in_panoptic(lambda c: c.pop("annotations"))),
    (r"panoptic\.json: image_id 2: .*0 annotations", in_panoptic(lambda c: c["annotations"].pop(1))),
    (r"panoptic\.json: image_id 1: .*2 annotations", in_annotation(image_id=1)),
    (r"panoptic\.json: image_id 2: .*segments_info", in_annotation(segments_info=None)),
    (r"panoptic\.json: image_id 2: .*file_name", in_annotation(file_name="../x.png")),
    (r"panoptic\.json: .*id 77777", in_annotation(segments_info=[{"id": 2, "category_id": 77777}])),
    (r"panoptic\.json: .*id 1 .*'my", in_panoptic(lambda c: c["categories"][0].update(name="my category"))),
    (r"panoptic\.json: .*id 77777", in_panoptic(lambda c: c["categories"][0].update(id=77777))),
    (f"{PANOPTIC_2}: is missing", lambda folder: (folder / PANOPTIC_2).unlink()),
    (f"{PANOPTIC_2}: cannot be decoded", replaced(PANOPTIC_2, b"damaged")),
    (f"{SEMANTIC_2}: is missing", lambda folder: (folder / SEMANTIC_2).unlink()),
    (f"{SEMANTIC_2}: has 7x5 pixels", replaced(SEMANTIC_2, png(7, 5))),
    (r"instances\.json: .*list", replaced("instances.json", b"{}")),
    (r"instances\.json: image_id 1, entry 0 .*score", in_result(score=float("nan"))),
    (r"instances\.json: image_id 1, entry 0 .*score", in_result(score=10**400)),
    (r"instances\.json: image_id 1, entry 0 .*id 77777", in_result(category_id=77777)),
    (r"instances\.json: image_id 1, entry 0 .*size", in_result(segmentation={"size": [1, 1], "counts": "1"})),
]  # fmt: skip


@pytest.mark.parametrize(("message", "spoil"), FAULTS)
def test_damaged_files_are_named(
    folder: Path, batches: list[Batch], vocabulary: Vocabulary, message: str, spoil: Edit
) -> None:
    spoil(folder)
    with pytest.raises(PredictionError, match=f"predictions/{message}"):
        FolderPredictor(folder, vocabulary)(batches[0])


def test_names_of_categories_may_be_synonyms_or_missing(
    folder: Path, batches: list[Batch], vocabulary: Vocabulary
) -> None:
    names = {c.id: c.names[-1].upper() for c in vocabulary.categories}
    in_panoptic(lambda c: [one.update(name=names[one["id"]]) for one in c["categories"]])(folder)
    assert FolderPredictor(folder, vocabulary)(batches[0])
    in_panoptic(lambda c: c.pop("categories"))(folder)
    assert FolderPredictor(folder, vocabulary)(batches[0])


def test_fingerprint_changes_with_every_file(folder: Path, vocabulary: Vocabulary) -> None:
    found = [FolderPredictor(folder, vocabulary).fingerprint()]
    for name in (PANOPTIC_2, SEMANTIC_2):
        (folder / name).write_bytes(b"another")
        found.append(FolderPredictor(folder, vocabulary).fingerprint())
    in_instances(lambda c: c.pop())(folder)
    found.append(FolderPredictor(folder, vocabulary).fingerprint())
    assert len(set(found)) == 4
    copied = shutil.copytree(folder, folder.with_name("copy"))
    assert FolderPredictor(Path(copied), vocabulary).fingerprint() == found[-1], "independent of the folder"


def test_other_predictions_are_not_overwritten(folder: Path, vocabulary: Vocabulary) -> None:
    writer = PredictionWriter(folder, vocabulary, "digest")
    for name in ("panoptic.json", "instances.json"):
        with pytest.raises(PredictionError, match=f"{folder} already contains"):
            writer.start()
        (folder / name).unlink()
    shutil.rmtree(folder)
    writer.start()
    writer.start()
    with pytest.raises(PredictionError, match=f"{folder} already contains"):
        PredictionWriter(folder, vocabulary, "another").start()


def test_parts_of_several_ranks_are_joined_in_order(
    batches: list[Batch], folder: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    writers = [PredictionWriter(tmp_path / "parts", vocabulary, "digest") for _ in range(2)]
    first, last = batches
    writers[0].start()
    writers[0].write(last, predictions_of(last))
    assert writers[1].done() == {last.number}
    with pytest.raises(PredictionError, match="of 1 of 3 images"):
        writers[0].finish(3)
    assert not writers[1].is_complete()
    for suffix in ("png", "jpg"):
        writers[1].write(replace(first, image_suffixes=("jpg", suffix)), predictions_of(first))
        writers[0].finish(3)
        images = json.loads((tmp_path / "parts" / "panoptic.json").read_text())["images"]
        assert images[1]["file_name"] == f"{first.keys[1]}.{suffix}"
    writers[0].clean()
    assert writers[1].is_complete()
    assert {p.relative_to(tmp_path / "parts") for p in (tmp_path / "parts").rglob("*")} == {
        p.relative_to(folder) for p in folder.rglob("*")
    }
    for name in ("panoptic.json", "instances.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (folder / name).read_bytes()
