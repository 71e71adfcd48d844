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
import torch
from benchmark_shards import BENCHMARKS
from hotcoco.panoptic import PanopticEval
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from trained import composed

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.prepare.coco_instances import read_coco_instances
from odise_pl.data.prepare.packing import prepare
from odise_pl.errors import UserError
from odise_pl.evaluation.categories import match_listed
from odise_pl.evaluation.coco_results import PredictionError
from odise_pl.evaluation.evaluate import score_predictions
from odise_pl.evaluation.folder import FolderPredictor, find_predictions
from odise_pl.evaluation.writer import PredictionWriter
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction, Truth
from odise_pl.vocabulary import Vocabulary, load_vocabulary

Scores = dict[str, dict[str, float]]


def data(shards: Path, name: str) -> PanopticDataModule:
    return PanopticDataModule(val={name: str(shards)}, num_workers=0, eval_batch_size=2)


def perfect(truth: Truth, shift: int = 0) -> Prediction:
    """The truth as a prediction, moved by ``shift`` columns."""
    panoptic, objects = truth.panoptic, truth.instances
    ids = panoptic.ids.roll(shift, 1)
    segments = tuple(replace(s, iscrowd=False) for s in panoptic.segments)
    things = [s for s in panoptic.segments if s.isthing and not s.iscrowd]
    if objects is not None:
        labels, masks = objects.labels[~objects.crowd], objects.masks[~objects.crowd].roll(shift, 2)
    else:
        labels = torch.tensor([s.category for s in things], dtype=torch.int64)
        masks = ids == torch.tensor([s.id for s in things], dtype=torch.int64)[:, None, None]
    semantic = torch.full(ids.shape, -1, dtype=torch.int64)
    for s in panoptic.segments:
        semantic[panoptic.ids == s.id] = s.category
    semantic = semantic if truth.semantic is None else truth.semantic.long()
    return Prediction(
        PanopticSegmentation(ids, segments),
        Instances(labels, torch.linspace(1, 0.3, len(labels)), masks),
        semantic.roll(shift, 1),
    )


def empty(truth: Truth) -> Prediction:
    size = truth.panoptic.ids.shape
    none = Instances(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, *size, dtype=torch.bool)
    )
    return Prediction(
        PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ()), none, torch.full(size, -1)
    )


def predictions_of(batch: Batch, predict: Callable[[Truth], Prediction] = perfect) -> list[Prediction]:
    return [predict(truth) for truth in batch.truths if truth is not None]


def write(shards: Path, name: str, folder: Path, predict: Callable[[Truth], Prediction] = perfect) -> Path:
    """Write predictions of a set, derived from its truth."""
    module = data(shards, name)
    writer = PredictionWriter(folder, module.vocabulary(name), "digest")
    writer.start()
    images = 0
    for batch in module.eval_loader(name):
        writer.write(batch, predictions_of(batch, predict))
        images += len(batch)
    writer.finish(images)
    writer.clean()
    return folder


def score(shards: Path, predictions: Path, run_dir: Path, *overrides: str) -> Scores:
    """``odise evaluate predictions=DIR``."""
    fixed = [f"paths.shards={shards}", f"predictions={predictions}", "data.num_workers=0", "trainer=cpu"]
    return score_predictions(
        composed("evaluate", run_dir, [*fixed, "trainer.enable_progress_bar=false", *overrides])
    )


@pytest.fixture
def folder(benchmark_shards: Path, tmp_path: Path) -> Path:
    return write(benchmark_shards / "coco_val2017", "coco", tmp_path / "predictions")


@pytest.fixture
def vocabulary(benchmark_shards: Path) -> Vocabulary:
    return data(benchmark_shards / "coco_val2017", "coco").vocabulary("coco")


def test_perfect_predictions_score_one_on_every_benchmark(benchmark_shards: Path, tmp_path: Path) -> None:
    for name, (_, _, out) in BENCHMARKS.items():
        write(benchmark_shards / out, name, tmp_path / "predictions" / name)
    found = score(benchmark_shards, tmp_path / "predictions", tmp_path, f"data=[{','.join(BENCHMARKS)}]")
    assert found.keys() == BENCHMARKS.keys()
    assert {value for scores in found.values() for value in scores.values()} == {1.0}
    assert set(found["pas21"]) == {"miou"}
    assert {"pq", "map", "miou"} <= set(found["ade150"])


def test_empty_predictions_score_zero(benchmark_shards: Path, tmp_path: Path) -> None:
    folder = write(benchmark_shards / "coco_val2017", "coco", tmp_path / "predictions", empty)
    assert set(score(benchmark_shards, folder, tmp_path, "data=coco")["coco"].values()) == {0.0}


def test_files_keep_large_ids_and_category_ids(benchmark_shards: Path, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "panoptic.json").read_text())
    segments = [segment for a in content["annotations"] for segment in a["segments_info"]]
    assert max(segment["id"] for segment in segments) == 9_000_123
    assert {segment["category_id"] for segment in segments} == {1, 90, 149, 200}
    write(benchmark_shards / "ade847_val", "ade847", tmp_path / "ade847")
    maps = [np.asarray(Image.open(path)) for path in (tmp_path / "ade847/semantic").iterdir()]
    assert {int(value) for values in maps for value in np.unique(values)} == {0, 300, 846, 65535}


def test_image_names_have_the_suffix_of_the_image(benchmark_shards: Path, tmp_path: Path) -> None:
    module = data(benchmark_shards / "coco_val2017", "coco")
    writer = PredictionWriter(tmp_path, module.vocabulary("coco"), "digest")
    batch, *_ = module.eval_loader("coco")
    writer.write(replace(batch, image_suffixes=("jpg", "png")), predictions_of(batch))
    writer.finish(2)
    images = json.loads((tmp_path / "panoptic.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"{batch.keys[0]}.jpg", f"{batch.keys[1]}.png"]


def test_panoptic_quality_equals_hotcoco(benchmark_shards: Path, tmp_path: Path) -> None:
    """hotcoco follows panopticapi; it reads our files and the original annotation."""
    shards = benchmark_shards / "coco_val2017"
    folder = write(shards, "coco", tmp_path / "all" / "coco", partial(perfect, shift=4))
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
    write(tmp_path / "shards", "mine", tmp_path / "all", partial(perfect, shift=3))
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
    (folder / "panoptic.json").unlink()
    shutil.rmtree(folder / "semantic")
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"] == {"map": 1.0, "ap50": 1.0}
    (folder / "instances.json").unlink()
    with pytest.raises(PredictionError, match=r"no predictions for coco: .*panoptic\.json"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_files_with_byte_order_marks_are_read(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "instances.json").write_bytes("[]".encode(encoding))
        assert FolderPredictor(tmp_path, load_vocabulary(["dog"])).measures == ("instances",)


def change(folder: Path, name: str, edit: Callable[[Any], Any]) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def in_result(number: int = 0, **values: Any) -> Callable[[Path], None]:
    """Change an entry of instances.json."""
    return lambda folder: change(folder, "instances.json", lambda c: c[number].update(values))


def in_annotation(**values: Any) -> Callable[[Path], None]:
    """Change the second annotation of panoptic.json."""
    return lambda folder: change(folder, "panoptic.json", lambda c: c["annotations"][1].update(values))


def in_annotations(edit: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: change(folder, "panoptic.json", lambda c: edit(c["annotations"]))


def with_counts(counts: Any) -> Callable[[Path], None]:
    """Change the run lengths of an entry's mask; a list is compressed first."""

    def edit(content: Any) -> None:
        size = content[4]["segmentation"]["size"]
        rle = {"size": size, "counts": counts}
        if isinstance(counts, list):
            rle["counts"] = mask_api.frPyObjects(rle, *size)["counts"].decode()
        content[4].update(segmentation=rle)

    return lambda folder: change(folder, "instances.json", edit)


def elsewhere(folder: Path, name: str) -> None:
    """Refer to a map by a path that is not a plain file name."""
    in_annotation(file_name=name)(folder)
    if name.strip(".") and "\0" not in name and not name.startswith("/"):
        (folder / "panoptic" / "a").mkdir(exist_ok=True)
        shutil.copy(folder / "panoptic" / "000000000002.png", folder / "panoptic" / name)


def replaced(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Replace a file or folder by another file, or remove it."""

    def spoil(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil


def cut(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PANOPTIC_2, SEMANTIC_2 = "panoptic/000000000002.png", "semantic/000000000002.png"
FAULTS: list[tuple[str, Callable[[Path], None]]] = [
    (r"panoptic\.json: .*JSON", replaced("panoptic.json", b"{")),
    (r"panoptic\.json: .*", replaced("panoptic.json", b"[]")),
    (r"panoptic\.json: .*image_id 2", in_annotations(lambda a: a.pop(1))),
    (r"panoptic\.json: image_id 2 ", in_annotations(lambda a: a.append(a[1]))),
    (r"panoptic\.json: image_id 2: .*segments_info", in_annotation(segments_info=None)),
    (r"panoptic\.json: 1 images .*image_id 77", in_annotations(lambda a: a.append({**a[1], "image_id": 77}))),
    (r"panoptic\.json: image_id 2: has id 10",
     in_annotations(lambda a: a[1]["segments_info"][0].update(id=10**30))),
    (r"image 2: .*9000123", in_annotations(lambda a: a[1]["segments_info"].pop())),
    *(
        (r"panoptic\.json: image_id 2: .*file_name", partial(elsewhere, name=name))
        for name in ("", "..", "../x.png", "x\0.png")
    ),
    (f"{PANOPTIC_2}: is missing", replaced(PANOPTIC_2, None)),
    (f"{PANOPTIC_2}: cannot be decoded.*truncated", partial(cut, name=PANOPTIC_2)),
    (f"{SEMANTIC_2}: is missing", replaced(SEMANTIC_2, None)),
    (f"{SEMANTIC_2}: has 7x5 pixels", replaced(SEMANTIC_2, png(7, 5))),
    ("semantic/.*Not a directory", replaced("semantic", b"")),
    (r"instances\.json: .*list", replaced("instances.json", b"{}")),
    (r"instances\.json: .*JSON", replaced("instances.json", b"[" * 200_000)),
    (r"instances\.json: 1 images .*image_id 77",
     lambda f: change(f, "instances.json", lambda c: c.append({**c[0], "image_id": 77}))),
    *((r"instances\.json: entry 0 .*score", in_result(score=value))
      for value in ("high", 10**400, float("nan"))),
    (r"instances\.json: entry 0 .*id 77777", in_result(category_id=77777)),
    (r"instances\.json: entry 0 .*size", in_result(segmentation={"size": [1, 1], "counts": "1"})),
    (r"instances\.json: entry 0 .*polygon", in_result(segmentation=[[1, 1, 10, float("nan"), 5, 5]])),
    (r"instances\.json: entry 4 \(image_id \d\): .*run lengths", with_counts([3, 5, 7])),
    (r"instances\.json: entry 4 .*run-length code", with_counts("a b")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "spoil"), FAULTS)
def test_damaged_files_are_named(
    benchmark_shards: Path, folder: Path, tmp_path: Path, message: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=f"predictions.*{message}"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_duplicates_are_reported_and_count_as_false(
    benchmark_shards: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "odise_pl")
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["map"] == 1
    assert "duplicates" not in caplog.text
    change(folder, "instances.json", lambda c: c.extend(list(c)))
    count = len(json.loads((folder / "instances.json").read_text()))
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["map"] < 1
    assert f"instances.json: {count // 2} of {count} results are duplicates" in caplog.text
    assert f"first entry {count // 2}" in caplog.text


def renumber(content: Any) -> None:
    """Permute the category ids."""
    ids = [category["id"] for category in content["categories"]]
    new = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    for entry in content["categories"]:
        entry.update(id=new[entry["id"]])
    for segment in (s for a in content["annotations"] for s in a["segments_info"]):
        segment["category_id"] = new[segment["category_id"]]


def test_categories_of_a_file_are_matched_by_name(
    benchmark_shards: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "instances.json").rename(folder / "kept")
    change(folder, "panoptic.json", renumber)
    unused = {"id": 5000, "name": "nothing that the set has", "isthing": 1}
    change(folder, "panoptic.json", lambda c: c["categories"].append(unused))
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["pq"] == 1
    names = tmp_path / "names.txt"  # the data set's names match too
    names.write_text("".join(f"class number {i}\n" for i in range(133)))
    own = load_vocabulary("coco_panoptic").names
    change(
        folder,
        "panoptic.json",
        lambda c: [x.update(name=n) for x, n in zip(c["categories"][:-1], own, strict=True)],
    )
    found = score(benchmark_shards, folder, tmp_path / "again", "data=coco", f"vocabulary.eval={names}")
    assert found["coco"]["pq"] == 1
    (folder / "kept").rename(folder / "instances.json")  # its ids are now ambiguous
    with pytest.raises(PredictionError, match=r"instances\.json.*category_id .*panoptic\.json"):
        score(benchmark_shards, folder, tmp_path / "both", "data=coco")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda c: [x.update(name=f"my {x['name']}") for x in c["categories"]], "category_id .*my "),
        (lambda c: [x.update(isthing=1 - x["isthing"]) for x in c["categories"]], "category_id .*stuff"),
        (lambda c: c["categories"].clear(), "category_id"),
        (lambda c: [x.update(name=c["categories"][0]["name"]) for x in c["categories"]], "category_id"),
        (lambda c: c["categories"].append(c["categories"][0]), "id 1"),
        (lambda c: c.update(categories={"a": 1}), "categories"),
        (lambda c: c["categories"][0].pop("name"), "categories.*name"),
        (lambda c: c["categories"][0].update(isthing=5), "categories.*isthing"),
    ],
)
def test_invalid_categories_are_named(
    benchmark_shards: Path, folder: Path, tmp_path: Path, edit: Callable[[Any], object], named: str
) -> None:
    change(folder, "panoptic.json", edit)
    with pytest.raises(PredictionError, match=rf"predictions/panoptic\.json.*{named}"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_ids_distinguish_classes_of_the_same_name() -> None:
    items = [
        {"id": 3, "name": "animal mouse", "official": "mouse"},
        {"id": 8, "name": "device mouse", "official": "mouse"},
    ]
    vocabulary = Vocabulary.from_json({"categories": items}, "two")
    listed = [{"id": 8, "name": "mouse"}, {"id": 3, "name": "Mouse "}, {"id": 1, "name": "mouse"}]
    found = match_listed(listed, [vocabulary])
    assert (found[8], found[3]) == (1, 0)
    assert "mouse" in str(found[1])


@pytest.mark.parametrize("name", ["panoptic", "semantic"])
def test_set_may_have_the_name_of_a_map_folder(folder: Path, vocabulary: Vocabulary, name: str) -> None:
    found, measures = find_predictions(folder, name, [name], vocabulary, ["panoptic", "semantic"])
    assert (found.folder, measures) == (folder, ("panoptic", "semantic"))
    folder.rename(folder.with_name(name))
    found, _ = find_predictions(folder.parent, name, [name], vocabulary, ["panoptic"])
    assert found.folder == folder.with_name(name)


def test_several_sets_need_folders_of_their_names(folder: Path, vocabulary: Vocabulary) -> None:
    assert find_predictions(folder, "coco", ["coco"], vocabulary, ["semantic"])[1] == ("semantic",)
    with pytest.raises(PredictionError, match="predictions/coco has no predictions"):
        find_predictions(folder, "coco", ["coco", "ade150"], vocabulary, ["semantic"])


def test_fingerprint_changes_with_every_file(folder: Path, vocabulary: Vocabulary) -> None:
    found = [FolderPredictor(folder, vocabulary).fingerprint()]
    for name in (PANOPTIC_2, SEMANTIC_2):
        (folder / name).write_bytes(b"another")
        found.append(FolderPredictor(folder, vocabulary).fingerprint())
    change(folder, "instances.json", lambda c: c.pop())
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
    benchmark_shards: Path, folder: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    writers = [PredictionWriter(tmp_path / "parts", vocabulary, "digest") for _ in range(2)]
    first, last = data(benchmark_shards / "coco_val2017", "coco").eval_loader("coco")
    writers[0].start()
    writers[0].write(last, predictions_of(last))
    assert writers[1].missing([last.number]) is None
    assert writers[1].missing([last.number, first.number]) is not None
    with pytest.raises(PredictionError, match="of 1 of 3 images"):
        writers[0].finish(3)
    for _ in range(2):
        writers[1].write(first, predictions_of(first))
    assert not writers[1].is_complete()
    writers[0].finish(3)
    writers[0].clean()
    assert writers[1].is_complete()
    assert {p.relative_to(tmp_path / "parts") for p in (tmp_path / "parts").rglob("*")} == {
        p.relative_to(folder) for p in folder.rglob("*")
    }
    for name in ("panoptic.json", "instances.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (folder / name).read_bytes()
