"""Every benchmark's official layout in miniature: what the label files say is what the shards hold."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mini_benchmarks as mini
import numpy as np
import pytest
from mini_benchmarks import Mini
from PIL import Image
from pycocotools import mask as mask_api
from test_archives import Pack, gzipped, tarred, zipped

from odise_pl.data.decoding import DecodedSample, decode
from odise_pl.data.files import open_archive
from odise_pl.data.instances import paste, read_objects, run_length
from odise_pl.data.manifest import ShardSet, check_shards
from odise_pl.data.prepare.command import main
from odise_pl.data.prepare.listing import image_ids
from odise_pl.data.prepare.pascal import CONTEXT_59
from odise_pl.data.reading import RawSample, read_shard
from odise_pl.data.records import DataError
from odise_pl.vocabulary import MEASURES, load_vocabulary

MAKE: dict[str, Callable[[Path], Mini]] = {
    "ade150": mini.ade150,
    "ade847": mini.ade847,
    "pc59": mini.context,
    "pc459": mini.context,
    "pas21": mini.voc,
}
VOCABULARIES = {
    "ade150": "ade20k_150",
    "ade847": "ade20k_847",
    "pc59": "pascal_context_59",
    "pc459": "pascal_context_459",
    "pas21": "pascal_voc_21",
}


def prepare(name: str, root: Path, out: Path, *options: str) -> int:
    return main([name, "--root", str(root), "--out", str(out), "--workers", "1", *options])


def samples(shards: ShardSet) -> dict[int, DecodedSample]:
    found = {}
    for url, size in zip(shards.urls, shards.sizes, strict=True):
        for raw in read_shard(url, list(range(size))):
            assert isinstance(raw, RawSample)
            sample = decode(raw)
            found[sample.image_id] = sample
    return found


def classes_of(sample: DecodedSample) -> np.ndarray:
    """The class map that the segments give."""
    classes = np.full(sample.ids.shape, -1)
    for segment in sample.segments:
        assert not segment.iscrowd
        classes[sample.ids == segment.id] = segment.category
    return classes


def expected(name: str, made: Mini) -> dict[int, np.ndarray]:
    if name != "pc59":
        return made.classes
    table = np.full(460, -1)
    table[np.array(CONTEXT_59) - 1] = np.arange(59)
    return {image: table[classes] for image, classes in made.classes.items()}


@pytest.mark.parametrize("name", MAKE)
def test_shards_hold_what_the_label_files_say(name: str, tmp_path: Path) -> None:
    made = MAKE[name](tmp_path / "root")
    assert prepare(name, tmp_path / "root", tmp_path / "out") == 0
    shards = check_shards(tmp_path / "out")
    manifest, found = shards.manifest, samples(shards)
    assert manifest.vocabulary == load_vocabulary(VOCABULARIES[name])
    assert manifest.measures == (MEASURES if name == "ade150" else ("semantic",))
    assert manifest.counts.samples == 3
    assert manifest.counts.segments == sum(len(sample.segments) for sample in found.values())
    assert found.keys() == made.classes.keys()
    for image, classes in expected(name, made).items():
        sample = found[image]
        assert all(s.isthing == manifest.vocabulary.isthing[s.category] for s in sample.segments)
        semantic = classes_of(sample) if sample.semantic is None else sample.semantic
        np.testing.assert_array_equal(semantic, classes)
        assert (sample.semantic is None) == (name != "ade150")


def test_objects_of_ade_lie_over_stuff(tmp_path: Path) -> None:
    made = mini.ade150(tmp_path / "root")
    assert prepare("ade150", tmp_path / "root", tmp_path / "out") == 0
    isthing = np.array(load_vocabulary("ade20k_150").isthing)
    for image, sample in samples(check_shards(tmp_path / "out")).items():
        kind, number = np.moveaxis(made.things[image], -1, 0)
        covered, classes = number > 0, classes_of(sample)
        np.testing.assert_array_equal(classes[covered], kind[covered])
        semantic = made.classes[image][~covered]
        stuff = (semantic >= 0) & ~isthing[semantic]
        np.testing.assert_array_equal(classes[~covered], np.where(stuff, semantic, -1))
        objects = {(k, n) for k, n in zip(kind[covered].tolist(), number[covered].tolist(), strict=True)}
        things = [s for s in sample.segments if s.isthing]
        assert sorted(s.category for s in things) == sorted(k for k, _ in objects)
        for thing in things:  # one object each
            assert len({*number[sample.ids == thing.id].tolist()}) == 1


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_the_list_of_classes_beside_ade_is_compared(
    tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mini.ade150(tmp_path / "root")
    path = tmp_path / "root/ADEChallengeData2016/objectInfo150.txt"
    text = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t9\t1\twall\n9\t0.1\t9\t9\t0\twindowpane, window \n"
        "22 \t0.1\t9\t9\t1\twater\n110\t0.1\t9\t9\t1\tswimming pool, swimming bath\n"
    )
    path.write_text(text, encoding=mark)
    assert prepare("ade150", tmp_path / "root", tmp_path / "out") == 0
    path.write_text(text.replace("wall", "sky"), encoding=mark)
    assert prepare("ade150", tmp_path / "root", tmp_path / "other") == 1
    error = capsys.readouterr().err
    assert f"{path}: class 1 is 'sky'" in error


def test_hundred_classes_of_objects_are_the_things_in_order() -> None:
    path = Path(__file__).parents[3].parent / "shared" / "vocabularies" / "ade20k_instance100_to_150.json"
    if not path.exists():
        pytest.skip(f"no official mapping at {path}")
    mapping = json.loads(path.read_text())["mapping"]
    things = [c.id + 1 for c in load_vocabulary("ade20k_150").categories if c.isthing]
    assert [mapping[str(k)] for k in range(1, 101)] == things
    context = json.loads(path.with_name("pascal_context_59_from_459.json").read_text())["label_ids"]
    assert tuple(context[1:]) == CONTEXT_59


def test_the_59_classes_are_those_of_the_same_names() -> None:
    few, many = load_vocabulary("pascal_context_59"), load_vocabulary("pascal_context_459")
    differing = {
        (category.name, many.categories[many.index_of(value)].name)
        for category, value in zip(few.categories, CONTEXT_59, strict=True)
        if category.name != many.categories[many.index_of(value)].name
    }
    assert differing == {("table", "dining table")} or differing == {("dining table", "table")}


def test_large_photographs_are_scaled_to_512(tmp_path: Path) -> None:
    made = mini.ade847(tmp_path / "root", scale=16)
    assert prepare("ade847", tmp_path / "root", tmp_path / "out") == 0
    for image, sample in samples(check_shards(tmp_path / "out")).items():
        height, width = made.classes[image].shape
        assert min(sample.size) == 512
        assert max(sample.size) == round(max(height, width) * 512 / min(height, width))
        # blocks much larger than a pixel stay what they are
        assert set(np.unique(classes_of(sample))) == set(np.unique(made.classes[image]))


PARTS: dict[str, list[tuple[str, str, Pack]]] = {
    "ade150": [
        ("ADEChallengeData2016", "ADEChallengeData2016", zipped),
        ("annotations_instance", "annotations_instance", tarred),
    ],
    "ade847": [("ADE20K_2021_17_01", "ADE20K_2021_17_01", zipped)],
    "pc59": [("VOCdevkit", "VOCtrainval_03-May-2010", tarred), ("trainval", "trainval", gzipped)],
    "pas21": [("VOCdevkit", "VOCtrainval_11-May-2012", tarred)],
}


@pytest.mark.parametrize("name", PARTS)
def test_archives_as_downloaded(name: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "root")
    assert prepare(name, tmp_path / "root", tmp_path / "loose") == 0
    (tmp_path / "download").mkdir()
    for folder, archive, pack in PARTS[name]:
        pack(tmp_path / "root" / folder, tmp_path / "download" / archive)
    assert prepare(name, tmp_path / "download", tmp_path / "packed", "--workers", "2") == 0
    one, other = (check_shards(tmp_path / out).manifest for out in ("loose", "packed"))
    assert one.shards == other.shards


@pytest.mark.parametrize(
    ("name", "part", "archive"),
    [
        ("ade150", "ADEChallengeData2016", "ADEChallengeData2016.zip"),
        ("ade150", "annotations_instance", "annotations_instance.tar"),
        ("ade847", "ADE20K_2021_17_01", "ADE20K_2021_17_01"),
        ("pc459", "trainval", "trainval.tar.gz"),
        ("pc59", "VOCdevkit", "VOCtrainval_03-May-2010.tar"),
        ("pas21", "VOCdevkit", "VOCtrainval_11-May-2012.tar"),
    ],
)
def test_a_missing_part_is_named_with_its_archive(
    name: str, part: str, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKE[name](tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / part)
    assert prepare(name, tmp_path / "root", tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert archive in error
    assert "data/README.md" in error


def wrong_size(path: Path) -> None:
    image = Image.open(path)
    image.resize((image.width - 1, image.height), Image.Resampling.NEAREST).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def unknown(path: Path) -> None:
    image = Image.open(path)
    pixels = np.array(image)
    pixels.flat[0] = 200
    changed = Image.fromarray(pixels)
    if image.mode == "P":
        changed.putpalette(list(range(256)) * 3)
    changed.save(path)


FAULTS = [
    ("ade150", "annotations/validation/*2.png", cut, "cannot be decoded"),
    ("ade150", "annotations/validation/*2.png", Path.unlink, "is missing"),
    ("ade150", "annotations/validation/*2.png", unknown, "values that the data set does not define: 200"),
    ("ade150", "annotations_instance/validation/*2.png", wrong_size, "pixels, "),
    ("ade150", "annotations_instance/validation/*2.png", unknown, "does not define: 200"),
    ("ade150", "annotations_instance/validation/*2.png", Path.unlink, "is missing"),
    ("ade847", "ADE/validation/*/*/*2_seg.png", cut, "cannot be decoded"),
    ("ade847", "ADE/validation/*/*/*2.jpg", cut, "cannot be decoded"),
    ("pc459", "trainval/2008*.mat", cut, "is no MATLAB file with a LabelMap"),
    ("pc59", "VOC2010/JPEGImages/2008*.jpg", Path.unlink, "is missing"),
    ("pas21", "SegmentationClass/2008*.png", unknown, "does not define: 200"),
    ("pas21", "SegmentationClass/2008*.png", wrong_size, "pixels, its image"),
]


@pytest.mark.parametrize(("name", "pattern", "spoil", "cause"), FAULTS)
def test_problems_are_listed(
    name: str, pattern: str, spoil: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    MAKE[name](tmp_path / "root")
    (path,) = [p for p in (tmp_path / "root").rglob("*") if p.is_file() and p.match(pattern)]
    spoil(path)
    assert prepare(name, tmp_path / "root", tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())["problems"]
    wanted = path.relative_to(tmp_path / "root").as_posix()
    assert [p for p in problems if p["file"] == wanted and cause in p["cause"]], problems
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["problems.json"]
    assert prepare(name, tmp_path / "root", tmp_path / "out", "--skip-bad") == 0
    assert check_shards(tmp_path / "out").manifest.counts.samples == 2


def test_a_label_file_without_image_is_a_problem(tmp_path: Path) -> None:
    mini.ade150(tmp_path / "root")
    (tmp_path / "root/ADEChallengeData2016/images/validation/ADE_val_00000003.jpg").unlink()
    assert prepare("ade150", tmp_path / "root", tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())["problems"]
    assert [p["cause"][:32] for p in problems] == ["there is no image of this name i"] * 2


def test_a_finished_set_is_kept(tmp_path: Path) -> None:
    mini.voc(tmp_path / "root")
    assert prepare("pas21", tmp_path / "root", tmp_path / "out") == 0
    before = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns
    assert prepare("pas21", tmp_path / "root", tmp_path / "out") == 0
    assert (tmp_path / "out" / "dataset.json").stat().st_mtime_ns == before


def test_image_ids_are_the_numbers_of_the_names_or_places() -> None:
    assert image_ids(["a/ADE_val_00000012", "ADE_val_00000003"]) == [12, 3]
    assert image_ids(["2007_000033"]) == [2007000033]
    assert image_ids(["1_23", "12_3"]) == [1, 2]
    assert image_ids(["x", "7"]) == [1, 2]
    assert image_ids(["img²_5", "①_7"]) == [5, 7]
    assert image_ids(["①", "7"]) == [1, 2]
    assert image_ids(["9" * 30, "7"]) == [1, 2]


def rename(root: Path, stem: str, new: bytes) -> None:
    """Give the files of an image another name."""
    for path in root.rglob(f"{stem}*"):
        path.rename(path.with_name(os.fsdecode(new) + path.suffix))


def test_keys_of_benchmarks_are_plain_file_names(tmp_path: Path) -> None:
    made = mini.ade150(tmp_path / "root")
    rename(tmp_path / "root", "ADE_val_00000002", b"a\\b.c_2")
    assert prepare("ade150", tmp_path / "root", tmp_path / "out") == 0
    found = samples(check_shards(tmp_path / "out"))
    assert found.keys() == made.classes.keys()
    assert found[2].key == "a_b_c_2"


@pytest.mark.parametrize("name", [b"\xff_2", b"a\n_2"])
def test_a_name_that_no_shard_can_hold_is_a_problem(tmp_path: Path, name: bytes) -> None:
    mini.ade150(tmp_path / "root")
    rename(tmp_path / "root", "ADE_val_00000002", name)
    assert prepare("ade150", tmp_path / "root", tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())["problems"]
    (problem,) = problems
    assert "its name is no path" in problem["cause"]
    assert prepare("ade150", tmp_path / "root", tmp_path / "out", "--skip-bad") == 0
    assert check_shards(tmp_path / "out").manifest.counts.samples == 2


def test_images_of_one_name_are_both_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mini.ade847(tmp_path / "root")
    jpeg = next((tmp_path / "root").rglob("*.jpg"))
    for path in (jpeg, jpeg.with_name(f"{jpeg.stem}_seg.png")):
        other = path.parent.parent / "other" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    assert prepare("ade847", tmp_path / "root", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{jpeg.parent.name}/{jpeg.name}" in error
    assert f"other/{jpeg.name}" in error


@pytest.mark.parametrize("name", ["pas21", "ade847"])
def test_links_to_images_are_followed(name: str, tmp_path: Path) -> None:
    made = MAKE[name](tmp_path / "root")
    folder = next((tmp_path / "root").rglob("*.jpg")).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert prepare(name, tmp_path / "root", tmp_path / "out") == 0
    assert check_shards(tmp_path / "out").manifest.counts.samples == len(made.classes)


# COCO's instance format


def test_instances_keep_their_overlapping_masks(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    assert prepare("coco-instances", tmp_path / "root", tmp_path / "out", "--split", "val2017") == 0
    shards = check_shards(tmp_path / "out")
    assert shards.manifest.measures == ("instances",)
    assert shards.manifest.vocabulary.names == ("cat", "toothbrush")
    annotations = json.loads((tmp_path / "root/annotations/instances_val2017.json").read_text())[
        "annotations"
    ]
    for image, sample in samples(shards).items():
        mine = [a for a in annotations if a["image_id"] == image]
        assert sample.objects is not None
        assert sample.objects.labels.tolist() == [0, 1, 0]
        assert sample.objects.crowd.tolist() == [False, False, True]
        assert sample.objects.areas.tolist() == [728, 324, 20]
        for mask, annotation in zip(sample.objects.masks, mine, strict=True):
            np.testing.assert_array_equal(
                mask, mask_api.decode(run_length(annotation["segmentation"], sample.size))
            )
        big, small, crowd = sample.objects.masks
        assert (big & small).any()
        np.testing.assert_array_equal(sample.ids == 2, small)  # over the big one
        np.testing.assert_array_equal(sample.ids == 1, big & ~small)
        np.testing.assert_array_equal(sample.ids == 3, crowd & ~big & ~small)
        assert [s.iscrowd for s in sample.segments] == [False, False, True]


def test_other_places_may_be_named(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root", "train")
    (tmp_path / "root/annotations/instances_train.json").rename(
        tmp_path / "root/train/_annotations.coco.json"
    )
    options = ("--split", "mine", "--images", "train", "--annotations", "train/_annotations.coco.json")
    assert prepare("coco-instances", tmp_path / "root", tmp_path / "out", *options) == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"segmentation": [[1, 2]]}, "annotations[4] of instances_val2017.json has a polygon of 2 numbers"),
        ({"segmentation": [[2, 2, 9, 2, 9, 9, 2]]}, "has a polygon of 7 numbers"),
        ({"segmentation": [[2, 2, 9, 2]]}, "has a polygon of 4 numbers"),
        ({"segmentation": [[2, 2, 9, 2, 9, 9], [2, 2, 9, 2]]}, "has a polygon of 4 numbers"),
        ({"segmentation": [[2, 2, 9, 2, 9, 9], []]}, "has a polygon of 0 numbers"),
        ({"segmentation": [[2, 2, 9, 2, 9, "9"]]}, "has a polygon [2, 2, 9, 2, 9, '9']"),
        ({"segmentation": [[2, 2, 9, 2, 9, float("nan")]]}, "has a polygon [2, 2, 9, 2, 9, nan]"),
        ({"segmentation": [[2, 2, 9, 2, 9, True]]}, "has a polygon [2, 2, 9, 2, 9, True]"),
        ({"segmentation": [[[2, 2], [9, 2], [9, 9]]]}, "has a polygon [[2, 2]"),
        ({"segmentation": [2, 2, 9, 2, 9, 9]}, "has a polygon 2"),
        ({"segmentation": [[2, 2, 9, 2, 9, 9], {"size": [52, 44], "counts": [2288]}]}, "has a polygon {"),
        ({"segmentation": {"size": [52, 44], "counts": [5, 5]}}, "sum of 2288"),
        ({"segmentation": []}, "has segmentation []"),
        ({"bbox": [1, 2, 3]}, "has bbox [1, 2, 3]"),
        ({"bbox": [1, 2, 3, "4"]}, "has bbox [1, 2, 3, '4']"),
        ({"bbox": None}, "has no bbox"),
        ({"area": -1}, "has area -1"),
        ({"area": 10**400}, "has area 1000"),
        ({"image_id": None}, "has no image_id"),
        ({"segmentation": None}, "has no segmentation"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "of size [3, 4]"),
        ({"category_id": 4}, "category_id 4"),
        ({"iscrowd": 7}, "iscrowd 7"),
        ({"image_id": 99}, "which images lacks"),
    ],
)
def test_problems_of_instances(change: dict[str, object], cause: str, tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    path = tmp_path / "root/annotations/instances_val2017.json"
    data = json.loads(path.read_text())
    data["annotations"][4] |= change
    path.write_text(json.dumps(data))
    assert prepare("coco-instances", tmp_path / "root", tmp_path / "out", "--split", "val2017") == 1
    problems = json.loads((tmp_path / "out/problems.json").read_text())["problems"]
    assert len(problems) == 1
    assert cause in problems[0]["cause"]
    assert (
        prepare("coco-instances", tmp_path / "root", tmp_path / "out", "--split", "val2017", "--skip-bad")
        == 0
    )


@pytest.mark.parametrize("isthing", [0, False, 2, "yes", None])
def test_what_is_no_thing_is_refused_in_the_format_of_objects(
    isthing: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini.coco_instances(tmp_path / "root")
    path = tmp_path / "root/annotations/instances_val2017.json"
    data = json.loads(path.read_text())
    for value, status in ((1, 0), (True, 0), (isthing, 1)):
        data["categories"][1]["isthing"] = value
        path.write_text(json.dumps(data))
        out = tmp_path / f"out {value}"
        assert prepare("coco-instances", tmp_path / "root", out, "--split", "val2017") == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in error
    assert "toothbrush" in error
    assert "isthing" in error


def test_objects_in_images_of_other_formats(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    path = tmp_path / "root/annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("000000000002.jpg", "000000000002.png"))
    jpeg = tmp_path / "root/val2017/000000000002.jpg"
    Image.open(jpeg).save(jpeg.with_suffix(".png"))
    jpeg.unlink()
    assert prepare("coco-instances", tmp_path / "root", tmp_path / "out", "--split", "val2017") == 0
    image = samples(check_shards(tmp_path / "out"))[2].image
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(jpeg.with_suffix(".png"))))


@pytest.mark.parametrize("name", MAKE)
def test_benchmarks_whose_images_are_pngs(name: str, tmp_path: Path) -> None:
    made = MAKE[name](tmp_path / "root")
    jpegs = sorted((tmp_path / "root").rglob("*.jpg"))
    pixels = {}
    for jpeg, suffix in zip(jpegs, (".png", ".tif", ".JPG", ".png"), strict=False):
        Image.open(jpeg).save(jpeg.with_suffix(suffix))
        pixels[image_ids([jpeg.stem])[0]] = np.asarray(Image.open(jpeg.with_suffix(suffix)))
        jpeg.unlink()
    assert prepare(name, tmp_path / "root", tmp_path / "out") == 0
    found = samples(check_shards(tmp_path / "out"))
    assert found.keys() == made.classes.keys()
    for image, sample in found.items():
        np.testing.assert_array_equal(np.asarray(sample.image), pixels[image])


def test_lists_of_windows_editors_are_read_and_lead_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini.voc(tmp_path / "root")
    (path,) = (tmp_path / "root").rglob("val.txt")
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert prepare("pas21", tmp_path / "root", tmp_path / "out") == 0
    path.write_text(f"{text}../JPEGImages/2009_000001\n")
    assert prepare("pas21", tmp_path / "root", tmp_path / "other") == 1
    assert str(path) in capsys.readouterr().err


def test_panoptic_coco_takes_its_instances_along(tmp_path: Path) -> None:
    mini.coco(tmp_path / "root")
    assert prepare("coco", tmp_path / "root", tmp_path / "without", "--split", "val2017") == 0
    assert {s.objects for s in samples(check_shards(tmp_path / "without")).values()} == {None}
    path = tmp_path / "root/annotations/instances_val2017.json"
    vocabulary = load_vocabulary("coco_panoptic")
    square = [[2.0, 2.0, 30.0, 2.0, 30.0, 28.0, 2.0, 28.0]]
    annotation = {
        "id": 1,
        "image_id": 2,
        "category_id": 90,
        "area": 728,
        "bbox": [2, 2, 28, 26],
        "iscrowd": 0,
    }
    things = [{"id": c.id, "name": c.official or c.name} for c in vocabulary.categories if c.isthing]
    panoptic = json.loads((tmp_path / "root/annotations/panoptic_val2017.json").read_text())
    content = {
        "images": panoptic["images"],
        "annotations": [annotation | {"segmentation": square}],
        "categories": things,
    }
    path.write_text(json.dumps(content))
    assert prepare("coco", tmp_path / "root", tmp_path / "with", "--split", "val2017") == 0
    objects = {i: s.objects for i, s in samples(check_shards(tmp_path / "with")).items()}
    assert {i: o.labels.tolist() for i, o in objects.items() if o is not None} == {1: [], 2: [79], 3: []}
    content["annotations"][0]["segmentation"] = [[1]]
    path.write_text(json.dumps(content))
    assert prepare("coco", tmp_path / "root", tmp_path / "bad", "--split", "val2017") == 1


def test_things_of_coco_get_the_packaged_names(tmp_path: Path) -> None:
    mini.coco_instances(tmp_path / "root")
    path = tmp_path / "root/annotations/instances_val2017.json"
    data = json.loads(path.read_text())
    things = [c for c in load_vocabulary("coco_panoptic").categories if c.isthing]
    data["categories"] = [{"id": c.id, "name": c.official or c.name} for c in things]
    path.write_text(json.dumps(data))
    assert prepare("coco-instances", tmp_path / "root", tmp_path / "out", "--split", "val2017") == 0
    assert check_shards(tmp_path / "out").manifest.vocabulary.categories == tuple(things)


OBJECT = {"category": 0, "iscrowd": 0, "area": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[" * 100_000, "JSON"),
        ("{}", "list"),
        ('"abc"', "list"),
        ("[3]", "3"),
        ('[{"category": 0}]', "iscrowd"),
        *(
            (json.dumps([OBJECT | {field: value}]), field)
            for field, values in {
                "category": (float("inf"), 2**70, "0", True, 0.5),
                "iscrowd": (2, "no", None),
                "area": (-1, float("nan"), "1", True),
                "segmentation": (None, [], "x"),
            }.items()
            for value in values
        ),
        (json.dumps([OBJECT | {"segmentation": {"size": [1, 1], "counts": "1"}}]), "size"),
    ],
    ids=lambda value: value[:40],
)
def test_damaged_objects_name_the_reason(content: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_objects(content.encode(), (3, 4))


def test_objects_are_read() -> None:
    assert paste(read_objects(b"[]", (3, 4))).sum() == 0
    assert len(read_objects(json.dumps([OBJECT]).encode(), (3, 4)).labels) == 1


def test_archives_are_closed_to_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    for path in (zipped(tmp_path / "a", tmp_path / "z"), tarred(tmp_path / "a", tmp_path / "t")):
        archive = open_archive(path)
        assert archive.names() == ("a/b",)
        with pytest.raises(FileNotFoundError):
            archive.read("a/c")
