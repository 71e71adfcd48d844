"""COCO's instance format, alone and next to a panoptic file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import mini_benchmarks as mini
import numpy as np
import pytest
from mini_benchmarks import samples
from mini_coco import beside, make_coco, pack
from PIL import Image
from pycocotools import mask as mask_api

from odise_pl.data.instances import encode_rle, paint_ids, read_objects
from odise_pl.data.manifest import Manifest
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.coco_instances import read_coco_instances
from odise_pl.data.prepare.packing import PROBLEMS, prepare
from odise_pl.data.records import DataError
from odise_pl.vocabulary import load_vocabulary


def pack_instances(root: Path, out: Path, **options: Any) -> Manifest:
    return prepare(read_coco_instances(root, "val2017"), out, **options)


def rewrite(root: Path, **change: Any) -> Path:
    """Change top-level fields of the annotation file by functions of their values."""
    path = root / "annotations/instances_val2017.json"
    data = json.loads(path.read_text())
    for field, function in change.items():
        data[field] = function(data[field])
    path.write_text(json.dumps(data))
    return path


def test_overlapping_masks_are_kept(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    manifest = pack_instances(tmp_path / "root", tmp_path / "out")
    assert manifest.measures == ("instances",)
    assert manifest.vocabulary.names == ("cat", "toothbrush")
    content = json.loads((tmp_path / "root/annotations/instances_val2017.json").read_text())
    for image, sample in samples(tmp_path / "out").items():
        mine = [a for a in content["annotations"] if a["image_id"] == image]
        assert sample.objects is not None
        assert sample.objects.labels.tolist() == [0, 1, 0]
        assert sample.objects.crowd.tolist() == [False, False, True]
        assert sample.objects.areas.tolist() == [728, 324, 20]
        for mask, annotation in zip(sample.objects.masks, mine, strict=True):
            code = encode_rle(annotation["segmentation"], sample.size)
            np.testing.assert_array_equal(mask, mask_api.decode(code))
        big, small, crowd = sample.objects.masks
        assert (big & small).any()
        np.testing.assert_array_equal(sample.ids == 2, small)  # over the big one
        np.testing.assert_array_equal(sample.ids == 1, big & ~small)
        np.testing.assert_array_equal(sample.ids == 3, crowd & ~big & ~small)
        assert [s.iscrowd for s in sample.segments] == [False, False, True]


def test_image_and_annotation_paths_are_options(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root", "train")
    annotations = tmp_path / "root/annotations/instances_train.json"
    annotations.rename(tmp_path / "root/train/_annotations.coco.json")
    jpeg = tmp_path / "root/train/000000000002.jpg"
    pixels = np.asarray(Image.open(jpeg))
    source = read_coco_instances(tmp_path / "root", "mine", "auto", "train", "train/_annotations.coco.json")
    prepare(source, tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(samples(tmp_path / "out")[2].image), pixels)
    with pytest.raises(DataError, match="--annotations is not a path below its folder"):
        read_coco_instances(tmp_path / "root", "train", annotations="../a")


TRIANGLE = [2, 2, 9, 2, 9, 9]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"segmentation": [TRIANGLE, [2, 2, 9, 2]]}, "of instances_val2017.json has a polygon of 4 numbers"),
        ({"segmentation": [[2, 2, 9, 2, 9, float("nan")]]}, "has a polygon [2, 2, 9, 2, 9, nan]"),
        ({"segmentation": {"size": [52, 44], "counts": [5, 5]}}, "2288 pixels"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "of size [3, 4]"),
        ({"segmentation": {"size": [52, 44], "counts": "0o"}}, "invalid characters"),
        ({"segmentation": {"size": [52, 44], "counts": "O"}}, "2288 pixels"),  # a length of -1
        ({"segmentation": [[200, 200, 300, 200, 300, 300]]}, "has no pixel"),
        ({"segmentation": []}, "has segmentation []"),
        ({"area": -1}, "has area -1"),
        ({"image_id": 99}, "which images lacks"),
        ({"category_id": 4}, "category_id 4"),
        ({"iscrowd": 7}, "iscrowd 7"),
    ],
    ids=str,
)
def test_problems_of_objects_are_listed(change: dict[str, object], cause: str, tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    rewrite(tmp_path / "root", annotations=lambda some: [*some[:4], some[4] | change, *some[5:]])
    pack_instances(tmp_path / "root", tmp_path / "out", skip_bad=True)
    (problem,) = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    assert cause in problem["cause"]


@pytest.mark.parametrize("isthing", [0, 2])
def test_categories_must_be_things(isthing: object, tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    path = rewrite(tmp_path / "root", categories=lambda c: [c[0], c[1] | {"isthing": isthing}])
    with pytest.raises(DataError, match=rf"{path}.*toothbrush.*isthing"):
        read_coco_instances(tmp_path / "root", "val2017")


def test_coco_things_get_packaged_names(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    things = [c for c in load_vocabulary("coco_panoptic").categories if c.isthing]
    listed = [{"id": c.id, "name": c.official or c.name} for c in things]
    rewrite(tmp_path / "root", categories=lambda _: listed)
    assert read_coco_instances(tmp_path / "root", "val2017").vocabulary.categories == tuple(things)


# An instance file next to a panoptic one


DISC = [{"id": 41, "name": "Disc"}]


def test_categories_are_matched_by_name(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    for name, index in (("Disc", 1), ("square", 0)):
        beside(coco, "instances", [{"id": 1, "name": "unused"}, {"id": 41, "name": name}])
        source = read_coco(coco.root, "train2017")
        assert not source.problems
        assert [[o.category for o in sample.instances or ()] for sample in source.samples] == [[index], []]
    pack(coco.root, tmp_path / "out")
    objects = {i: s.objects for i, s in samples(tmp_path / "out").items()}
    assert {i: o.labels.tolist() for i, o in objects.items() if o} == {1: [0], 2: []}


@pytest.mark.parametrize("name", ["zebra", "ground"])
def test_objects_without_thing_class_are_problems(tmp_path: Path, name: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    beside(coco, "instances", [{"id": 41, "name": name}])
    (problem,) = read_coco(coco.root, "train2017").problems
    assert problem.file == "annotations/instances_train2017.json"
    assert f"category_id 41, '{name}', which is no thing of panoptic_train2017.json" in problem.cause


OTHER_IMAGE = {"id": 1, "file_name": "000000000002.jpg", "height": 9, "width": 9}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("instances", {"categories": None}, "categories"),
        ("instances", {"categories": [*DISC, {"id": 41, "name": "square"}]}, "2 categories have the id 41"),
        ("instances", {"categories": [*DISC, {"id": 42, "name": "disc "}]}, "two categories have the name"),
        ("instances", {"images": None}, "images"),
        ("instances", {"images": [OTHER_IMAGE]}, r"images\[0\] has id 1 .*000000000001\.jpg"),
        ("captions", {"images": [OTHER_IMAGE]}, r"images\[0\] has id 1 .*000000000001\.jpg"),
    ],
)
def test_unusable_optional_file(tmp_path: Path, name: str, content: dict[str, Any], message: str) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    path = beside(coco, name, **({"categories": DISC} | content))
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        read_coco(coco.root, "train2017")


@pytest.mark.parametrize(
    ("images", "cause"),
    [
        ([], "no entry of images has id 2 (000000000002.jpg)"),
        ([{"id": 2}], "images[0] has no file_name"),
        (
            [{"id": 2, "file_name": "000000000002.jpg", "height": 128, "width": 192}],
            "images[0] has height and width [128, 192]",
        ),
    ],
)
def test_images_with_unknown_objects_are_problems(tmp_path: Path, images: list[Any], cause: str) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    beside(coco, "instances", DISC, images=images + coco.annotation["images"][:1])
    source = read_coco(coco.root, "train2017")
    assert [sample.image_id for sample in source.samples] == [1]
    assert {problem.sample for problem in source.problems} == {"train2017/000000000002.jpg"}
    assert {problem.file for problem in source.problems} == {"annotations/instances_train2017.json"}
    assert cause in [problem.cause[: len(cause)] for problem in source.problems]


def test_objects_of_other_images_are_counted(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", DISC)
    path.write_text(path.read_text().replace('"image_id": 1', '"image_id": 5'))
    assert read_coco(coco.root, "train2017").notes[-1].startswith("1 objects")


def test_optional_files_in_other_roots_and_archives(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", DISC)
    (tmp_path / "more" / "annotations").mkdir(parents=True)
    moved = path.rename(tmp_path / "more" / "annotations" / path.name)
    (sample,) = read_coco([coco.root, tmp_path / "more"], "train2017").samples
    assert len(sample.instances or ()) == 1
    with zipfile.ZipFile(coco.root / "annotations_trainval2017.zip", "w") as file:
        file.write(moved, f"annotations/{path.name}")
    assert read_coco(coco.root, "train2017").samples == (sample,)


# Objects in a shard

OBJECT = {"category": 0, "iscrowd": 0, "area": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{}", "list"),
        ("[3]", "3"),
        ('[{"category": 0}]', "iscrowd"),
        (json.dumps([OBJECT | {"area": -1}]), "area"),
        (json.dumps([OBJECT | {"segmentation": {"size": [1, 1], "counts": "1"}}]), "size"),
    ],
)
def test_damaged_objects_are_rejected(content: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_objects(content.encode(), (3, 4))


def test_read_and_paint_objects() -> None:
    assert paint_ids(read_objects(b"[]", (3, 4))).sum() == 0
    assert len(read_objects(json.dumps([OBJECT]).encode(), (3, 4)).labels) == 1
