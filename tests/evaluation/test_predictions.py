"""Predictions as files: written, read by the official tools and by ourselves, and scored."""

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
from hydra import compose, initialize_config_dir
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.prepare.command import main as prepare
from odise_pl.errors import UserError
from odise_pl.evaluation.categories import match_listed
from odise_pl.evaluation.coco_results import PredictionError
from odise_pl.evaluation.folder import FolderPredictor, find_predictions
from odise_pl.evaluation.writer import PredictionWriter
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction, Truth
from odise_pl.vocabulary import Vocabulary, load_vocabulary

CONF = Path(__file__).parents[2] / "conf"
Scores = dict[str, dict[str, float]]


def data(shards: Path, name: str) -> PanopticDataModule:
    return PanopticDataModule(val={name: str(shards)}, num_workers=0, eval_batch_size=2)


def perfect(truth: Truth, shift: int = 0) -> Prediction:
    """A prediction that is its truth, moved by ``shift`` columns."""
    panoptic, objects = truth.panoptic, truth.instances
    ids = panoptic.ids.roll(shift, 1)
    segments = tuple(replace(s, iscrowd=False) for s in panoptic.segments)
    things = [s for s in panoptic.segments if s.isthing and not s.iscrowd]
    if objects is not None:
        found = Instances(
            objects.labels[~objects.crowd], torch.ones(1), objects.masks[~objects.crowd].roll(shift, 2)
        )
    else:
        masks = (
            torch.stack([ids == s.id for s in things])
            if things
            else torch.zeros(0, *ids.shape, dtype=torch.bool)
        )
        found = Instances(torch.tensor([s.category for s in things], dtype=torch.int64), torch.ones(1), masks)
    scores = torch.linspace(1, 0.3, len(found.labels))
    semantic = torch.full(ids.shape, -1, dtype=torch.int64)
    for s in panoptic.segments:
        semantic[panoptic.ids == s.id] = s.category
    semantic = semantic if truth.semantic is None else truth.semantic.long()
    return Prediction(
        PanopticSegmentation(ids, segments), replace(found, scores=scores), semantic.roll(shift, 1)
    )


def empty(truth: Truth) -> Prediction:
    size = truth.panoptic.ids.shape
    none = Instances(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, *size, dtype=torch.bool)
    )
    return Prediction(
        PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ()), none, torch.full(size, -1)
    )


def write(shards: Path, name: str, folder: Path, predict: Callable[[Truth], Prediction]) -> Path:
    """Predictions of a set, made of its truth."""
    module = data(shards, name)
    writer = PredictionWriter(folder, module.vocabulary(name), "digest")
    writer.start(0)
    images = 0
    for batch in module.eval_loader(name):
        writer.write(batch, [predict(truth) for truth in batch.truths if truth is not None])
        images += len(batch)
    writer.finish(images)
    writer.clean()
    return folder


def score(shards: Path, predictions: Path, run_dir: Path, *overrides: str) -> Scores:
    """``python evaluate.py predictions=DIR``."""
    from odise_pl.evaluation.evaluate import score_predictions

    with initialize_config_dir(str(CONF), version_base="1.3"):
        fixed = ["run=test", f"run_dir={run_dir}", f"paths.shards={shards}", f"predictions={predictions}"]
        few = ["data.num_workers=0", "trainer=cpu", "trainer.enable_progress_bar=false"]
        config = compose("evaluate", [*fixed, *few, *overrides])
    return score_predictions(config)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "instances.json").write_bytes("[]".encode(encoding))
        assert FolderPredictor(tmp_path, load_vocabulary(["dog"])).measures == ("instances",)


def test_files_are_not_put_together_unless_every_image_is_there(
    benchmark_shards: Path, tmp_path: Path
) -> None:
    module = data(benchmark_shards / "ade847_val", "ade847")
    writer = PredictionWriter(tmp_path, module.vocabulary("ade847"), "digest")
    writer.start(0)
    first, *_ = module.eval_loader("ade847")
    writer.write(first, [perfect(truth) for truth in first.truths if truth is not None])
    assert writer.lost([first.number]) is None
    assert writer.lost([first.number, 99]) == tmp_path / ".parts" / f"{99:09d}.json"
    with pytest.raises(PredictionError, match="of 2 of 3 images"):
        writer.finish(3)
    semantic, panoptic = (tmp_path / kind / f"{first.keys[0]}.png" for kind in ("semantic", "panoptic"))
    semantic.unlink()
    assert writer.lost([first.number]) == semantic
    panoptic.write_bytes(panoptic.read_bytes()[:-7])
    assert writer.lost([first.number]) == panoptic, "cut off"
    part = tmp_path / ".parts" / f"{first.number:09d}.json"
    part.write_text("[]")
    assert writer.lost([first.number]) == part, "damaged"
    with pytest.raises(PredictionError, match="holds predictions already"):
        PredictionWriter(tmp_path, writer.vocabulary, "another").start(0)
    writer.start(0)
    assert not list(tmp_path.rglob("*.png")), "this evaluation may begin again"


def test_predictions_of_a_finished_set_are_looked_at_one_by_one(
    benchmark_shards: Path, tmp_path: Path
) -> None:
    shards = benchmark_shards / "ade847_val"
    folder = write(shards, "ade847", tmp_path, perfect)
    vocabulary = data(shards, "ade847").vocabulary("ade847")
    writer = PredictionWriter(folder, vocabulary, "digest")
    assert writer.lost_of_all() is None
    assert PredictionWriter(folder, vocabulary, "another").lost_of_all() == folder / "panoptic.json"
    for name in ("semantic", "panoptic"):
        damaged = min((folder / name).iterdir())
        damaged.write_bytes(damaged.read_bytes()[:-20])
        assert writer.lost_of_all() == damaged
    writer.reopen()
    writer.refuse_taken()
    writer.clean()
    (folder / "panoptic.json").unlink()
    assert writer.reopen() == folder / "panoptic.json"
    with pytest.raises(PredictionError, match="holds predictions already"):
        writer.refuse_taken()  # nothing says whose they are


@pytest.mark.parametrize(("predict", "expected"), [(perfect, 1.0), (empty, 0.0)])
def test_perfect_and_empty_predictions_of_every_benchmark(
    benchmark_shards: Path, tmp_path: Path, predict: Callable[[Truth], Prediction], expected: float
) -> None:
    for name, (_, _, out) in BENCHMARKS.items():
        write(benchmark_shards / out, name, tmp_path / "predictions" / name, predict)
    found = score(benchmark_shards, tmp_path / "predictions", tmp_path, f"data=[{','.join(BENCHMARKS)}]")
    assert found.keys() == BENCHMARKS.keys()
    assert {value for scores in found.values() for value in scores.values()} == {expected}
    assert set(found["pas21"]) == {"miou"}
    assert {"pq", "map", "miou"} <= set(found["ade150"])


def test_ids_of_more_than_16_bits_and_other_category_ids_survive(
    benchmark_shards: Path, tmp_path: Path
) -> None:
    folder = write(benchmark_shards / "coco_val2017", "coco", tmp_path / "coco", perfect)
    content = json.loads((folder / "panoptic.json").read_text())
    ids = {segment["id"] for a in content["annotations"] for segment in a["segments_info"]}
    assert max(ids) == 9_000_123
    categories = {segment["category_id"] for a in content["annotations"] for segment in a["segments_info"]}
    assert categories == {1, 90, 149, 200}
    write(benchmark_shards / "ade847_val", "ade847", tmp_path / "ade847", perfect)
    values = {
        int(v)
        for path in (tmp_path / "ade847/semantic").iterdir()
        for v in np.unique(np.asarray(Image.open(path)))
    }
    assert values == {0, 300, 846, 65535}


def test_the_official_rules_give_the_same_panoptic_quality(benchmark_shards: Path, tmp_path: Path) -> None:
    """hotcoco reads our files and the original annotation, and follows panopticapi."""
    folder = write(
        benchmark_shards / "coco_val2017", "coco", tmp_path / "all" / "coco", lambda t: perfect(t, 4)
    )
    found = score(benchmark_shards, tmp_path / "all", tmp_path, "data=coco")["coco"]
    truth = benchmark_shards.parent / "downloads" / "coco" / "annotations" / "panoptic_val2017.json"
    evaluation = PanopticEval(truth, folder / "panoptic.json")
    evaluation.evaluate()
    expected = evaluation.results()
    assert 0 < found["pq"] < 1
    for key, part in (("pq", "All"), ("pq_things", "Things"), ("pq_stuff", "Stuff")):
        assert found[key] == pytest.approx(expected[part]["pq"], abs=1e-9, rel=0)


def test_pycocotools_gives_the_same_average_precision(tmp_path: Path) -> None:
    """From the original annotation, whose objects overlap, and our instance results."""
    mini.coco_instances(tmp_path / "root")
    arguments = ["coco-instances", "--root", str(tmp_path / "root"), "--split", "val2017", "--workers", "1"]
    assert prepare([*arguments, "--out", str(tmp_path / "shards")]) == 0
    write(tmp_path / "shards", "mine", tmp_path / "all", lambda truth: perfect(truth, 3))
    found = score(
        tmp_path, tmp_path / "all", tmp_path, "data=shards", f"+data.val.mine={tmp_path / 'shards'}"
    )["mine"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "root" / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "all" / "instances.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0 < found["map"] < 1
    assert (found["map"], found["ap50"]) == pytest.approx(tuple(evaluation.stats[:2]), abs=1e-9, rel=0)
    assert set(found) == {"map", "ap50"}


@pytest.fixture
def folder(benchmark_shards: Path, tmp_path: Path) -> Path:
    return write(benchmark_shards / "coco_val2017", "coco", tmp_path / "predictions", perfect)


def test_what_is_not_there_is_not_measured(benchmark_shards: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "panoptic.json").unlink()
    shutil.rmtree(folder / "semantic")
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"] == {"map": 1.0, "ap50": 1.0}
    (folder / "instances.json").unlink()
    with pytest.raises(
        PredictionError, match=r"has no predictions for coco: expected panoptic\.json with .* or"
    ):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def change(folder: Path, name: str, edit: Callable[[Any], Any]) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def _elsewhere(folder: Path, name: str) -> None:
    """A map that is there, but not in the folder of maps, or not under its own name."""
    change(folder, "panoptic.json", lambda c: c["annotations"][1].update(file_name=name))
    if name.strip(".") and "\0" not in name and not name.startswith("/"):
        (folder / "panoptic" / "a").mkdir(exist_ok=True)
        shutil.copy(folder / "panoptic" / "000000000002.png", folder / "panoptic" / name)


def _file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _compressed(folder: Path, lengths: list[int]) -> None:
    """Run lengths as pycocotools itself writes and takes them, whatever they add up to."""

    def edit(content: Any) -> None:
        size = content[4]["segmentation"]["size"]
        code = mask_api.frPyObjects({"size": size, "counts": lengths}, *size)["counts"]
        content[4].update(segmentation={"size": size, "counts": code.decode()})

    change(folder, "instances.json", edit)


FAULTS: list[tuple[str, Callable[[Path], None]]] = [
    (
        "no annotation with image_id 2",
        lambda f: change(f, "panoptic.json", lambda c: c["annotations"].pop(1)),
    ),
    (r"panoptic/0*2\.png: is missing", lambda f: (f / "panoptic" / "000000000002.png").unlink()),
    (
        r"panoptic/0*2\.png: cannot be decoded",
        lambda f: (f / "panoptic" / "000000000002.png").write_bytes(b"x"),
    ),
    (r"semantic/0*2\.png: is missing", lambda f: (f / "semantic" / "000000000002.png").unlink()),
    (
        r"semantic/0*2\.png: has 7x5 pixels",
        lambda f: Image.new("L", (7, 5)).save(f / "semantic/000000000002.png"),
    ),
    ("an entry has no score", lambda f: change(f, "instances.json", lambda c: c[0].pop("score"))),
    (
        "category_id 77777 is none",
        lambda f: change(f, "instances.json", lambda c: c[0].update(category_id=77777)),
    ),
    (
        "category_id 4.5 is no whole number",
        lambda f: change(f, "instances.json", lambda c: c[0].update(category_id=4.5)),
    ),
    (
        "size",
        lambda f: change(
            f, "instances.json", lambda c: c[0].update(segmentation={"size": [1, 1], "counts": "1"})
        ),
    ),
    (r"panoptic\.json: cannot be read", lambda f: (f / "panoptic.json").write_text("{")),
    ("is no panoptic JSON", lambda f: (f / "panoptic.json").write_text("[]")),
    (
        r"predictions/panoptic\.json: image_id 2 has two annotations",
        lambda f: change(f, "panoptic.json", lambda c: c["annotations"].append(c["annotations"][1])),
    ),
    (
        r"panoptic\.json: image_id '2' is no whole number",
        lambda f: change(f, "panoptic.json", lambda c: c["annotations"][1].update(image_id="2")),
    ),
    (
        r"panoptic\.json: image_id 2: segments_info None is no list",
        lambda f: change(f, "panoptic.json", lambda c: c["annotations"][1].update(segments_info=None)),
    ),
    (
        r"panoptic\.json: 1 images are none of the data set's, image_id 77",
        lambda f: change(
            f, "panoptic.json", lambda c: c["annotations"].append({**c["annotations"][1], "image_id": 77})
        ),
    ),
    (
        r"instances\.json: 1 images are none of the data set's, image_id 77",
        lambda f: change(f, "instances.json", lambda c: c.append({**c[0], "image_id": 77})),
    ),
    ("panoptic: Not a directory|panoptic/.*Not a directory", lambda f: _file_for_folder(f / "panoptic")),
    ("semantic/.*Not a directory", lambda f: _file_for_folder(f / "semantic")),
    (r"instances\.json: cannot be read", lambda f: (f / "instances.json").write_text("[" * 200_000)),
    *(
        (r"panoptic\.json: image_id 2: file_name ", partial(_elsewhere, name=name))
        for name in ("", ".", "..", "/x.png", "../x.png", "a/../x.png", "./x.png", "..\\x.png", "x\0.png")
    ),
    (
        "id 10{30} is none that a PNG",
        lambda f: change(
            f, "panoptic.json", lambda c: c["annotations"][1]["segments_info"][0].update(id=10**30)
        ),
    ),
    (
        "score 10{400} is no number",
        lambda f: change(f, "instances.json", lambda c: c[0].update(score=10**400)),
    ),
    (
        r"polygon \[1, 1, 10, nan",
        lambda f: change(
            f, "instances.json", lambda c: c[0].update(segmentation=[[1, 1, 10, float("nan"), 5, 5]])
        ),
    ),
    (
        "run lengths that are not whole numbers with a sum of",
        lambda f: change(
            f,
            "instances.json",
            lambda c: c[0].update(segmentation={"size": c[0]["segmentation"]["size"], "counts": [1, 2, 3]}),
        ),
    ),
    (
        r"instances\.json: entry 4 \(image_id \d\): has run lengths that .* encode the mask of the whole",
        lambda f: _compressed(f, [3, 5, 7]),
    ),
    ("has run lengths that are not whole numbers", lambda f: _compressed(f, [3, 10**6])),
    (
        "run-length code with characters that are none",
        lambda f: change(
            f,
            "instances.json",
            lambda c: c[0].update(segmentation={"size": c[0]["segmentation"]["size"], "counts": "a b"}),
        ),
    ),
    (
        r"panoptic/0*2\.png: cannot be decoded \(image file is truncated",
        lambda f: _cut(f / "panoptic/000000000002.png"),
    ),
    (
        r"semantic/0*2\.png: cannot be decoded \(image file is truncated",
        lambda f: _cut(f / "semantic/000000000002.png"),
    ),
    (
        "score 'high' is no number",
        lambda f: change(f, "instances.json", lambda c: c[0].update(score="high")),
    ),
    (
        "predictions in .*/predictions cannot be scored: .*score that is not finite",
        lambda f: change(f, "instances.json", lambda c: c[0].update(score=float("nan"))),
    ),
    ("is no list of results", lambda f: (f / "instances.json").write_text("{}")),
    (
        "image 2: the map has pixels of segment id 9000123",
        lambda f: change(f, "panoptic.json", lambda c: c["annotations"][1]["segments_info"].pop()),
    ),
]


@pytest.mark.parametrize(("message", "spoil"), FAULTS)
def test_faults_are_named(
    benchmark_shards: Path, folder: Path, tmp_path: Path, message: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_results_that_come_again_are_told_and_scored_as_by_cocos_rules(
    benchmark_shards: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "odise_pl")
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["map"] == 1
    assert "results are the same" not in caplog.text
    change(folder, "instances.json", lambda c: c.extend(list(c)))
    count = len(json.loads((folder / "instances.json").read_text()))
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["map"] < 1
    assert f"instances.json: {count // 2} of {count} results are the same as one before" in caplog.text
    assert f"entry {count // 2} the first" in caplog.text


def _renumber(content: Any) -> None:
    """Another numbering of the same classes, in which each id is another class's."""
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
    change(folder, "panoptic.json", _renumber)
    unused = {"id": 5000, "name": "nothing that the set has", "isthing": 1}
    change(folder, "panoptic.json", lambda c: c["categories"].append(unused))
    assert score(benchmark_shards, folder, tmp_path, "data=coco")["coco"]["pq"] == 1
    names = tmp_path / "names.txt"  # the set's own names count under any others
    names.write_text("".join(f"class number {i}\n" for i in range(133)))
    own = load_vocabulary("coco_panoptic").names
    change(
        folder,
        "panoptic.json",
        lambda c: [x.update(name=n) for x, n in zip(c["categories"][:-1], own, strict=True)],
    )
    found = score(benchmark_shards, folder, tmp_path / "again", "data=coco", f"vocabulary.eval={names}")
    assert found["coco"]["pq"] == 1
    (folder / "kept").rename(folder / "instances.json")  # which says nothing of its own numbering
    with pytest.raises(PredictionError, match=r"instances\.json.*category_id .*panoptic\.json"):
        score(benchmark_shards, folder, tmp_path / "both", "data=coco")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda c: [x.update(name=f"my {x['name']}") for x in c["categories"]], "category_id .*my "),
        (lambda c: [x.update(isthing=1 - x["isthing"]) for x in c["categories"]], "category_id .*stuff"),
        (lambda c: c["categories"].clear(), "category_id"),
        (lambda c: [x.update(name=c["categories"][0]["name"]) for x in c["categories"]], "category_id"),
        (lambda c: c["categories"].append(c["categories"][0]), "id 1 twice"),
        (lambda c: c.update(categories={"a": 1}), "categories"),
        (lambda c: c["categories"].append("dog"), "categories"),
        (lambda c: c["categories"][0].pop("name"), "categories.*name"),
        (lambda c: c["categories"][0].update(isthing=5), "categories.*isthing"),
        (lambda c: c["categories"][0].update(id=True), "categories.*id"),
    ],
)
def test_categories_that_do_not_fit_are_named(
    benchmark_shards: Path, folder: Path, tmp_path: Path, edit: Callable[[Any], object], named: str
) -> None:
    change(folder, "panoptic.json", edit)
    with pytest.raises(PredictionError, match=rf"predictions/panoptic\.json.*{named}"):
        score(benchmark_shards, folder, tmp_path, "data=coco")


def test_classes_of_one_official_name_are_told_apart_by_their_ids() -> None:
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
def test_a_set_may_be_called_as_a_folder_of_maps(benchmark_shards: Path, folder: Path, name: str) -> None:
    vocabulary = data(benchmark_shards / "coco_val2017", "coco").vocabulary("coco")
    found, measures = find_predictions(folder, name, [name], vocabulary, ["panoptic", "semantic"])
    assert (found.folder, measures) == (folder, ("panoptic", "semantic"))
    folder.rename(folder.with_name(name))
    found, _ = find_predictions(folder.parent, name, [name], vocabulary, ["panoptic"])
    assert found.folder == folder.with_name(name)


def test_predictions_that_are_there_are_not_written_over(benchmark_shards: Path, folder: Path) -> None:
    vocabulary = data(benchmark_shards / "coco_val2017", "coco").vocabulary("coco")
    writer = PredictionWriter(folder, vocabulary, "digest")
    with pytest.raises(PredictionError, match="holds predictions already"):
        writer.start(0)
    (folder / "panoptic.json").unlink()
    with pytest.raises(PredictionError, match="holds predictions already"):
        writer.start(0)


def test_parts_of_two_runs_and_two_ranks_are_put_together_in_order(
    benchmark_shards: Path, tmp_path: Path
) -> None:
    shards = benchmark_shards / "coco_val2017"
    module = data(shards, "coco")
    whole = write(shards, "coco", tmp_path / "whole", perfect)
    writers = [PredictionWriter(tmp_path / "parts", module.vocabulary("coco"), "digest") for _ in range(2)]
    batches: list[Batch] = list(module.eval_loader("coco"))
    for writer, batch in zip(
        [writers[0], writers[1], writers[1]], [*reversed(batches), batches[0]], strict=True
    ):
        writer.write(batch, [perfect(truth) for truth in batch.truths if truth is not None])
    writers[0].finish(3)
    writers[0].clean()
    for name in ("panoptic.json", "instances.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "parts" / ".parts").exists()


def test_one_set_may_lie_in_the_folder_itself(benchmark_shards: Path, folder: Path, tmp_path: Path) -> None:
    vocabulary = data(benchmark_shards / "coco_val2017", "coco").vocabulary("coco")
    assert find_predictions(folder, "coco", ["coco"], vocabulary, ["semantic"])[1] == ("semantic",)
    with pytest.raises(PredictionError, match="predictions/coco has no predictions"):
        find_predictions(folder, "coco", ["coco", "ade150"], vocabulary, ["semantic"])
    assert FolderPredictor(tmp_path / "nowhere", vocabulary).measures == ()
