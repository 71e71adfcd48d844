"""The formats of labelling tools: Labelme, YOLO, maps, and the layouts of VOC and Cityscapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini_formats as mini
import numpy as np
import pytest
from mini_benchmarks import SIZES, samples
from PIL import Image
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.decoding import DecodedSample
from odise_pl.data.manifest import Manifest, open_shard_set
from odise_pl.data.prepare.cityscapes import read_cityscapes
from odise_pl.data.prepare.labelme import read_labelme
from odise_pl.data.prepare.maps import read_maps, read_voc_layout
from odise_pl.data.prepare.packing import PROBLEMS, prepare
from odise_pl.data.prepare.shares import take_share
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.yolo import read_yolo
from odise_pl.data.records import DataError
from odise_pl.errors import SettingError, UserError
from odise_pl.vocabulary import MEASURES


def pack(source: Source, folder: Path, **options: Any) -> tuple[Manifest, list[DecodedSample]]:
    manifest = prepare(source, folder, **options)
    return manifest, [sample for _, sample in sorted(samples(folder).items())]


def problems(source: Source, folder: Path) -> list[dict[str, str]]:
    with pytest.raises(DataError, match=PROBLEMS):
        prepare(source, folder)
    found: list[dict[str, str]] = json.loads((folder / PROBLEMS).read_text())["problems"]
    return found


def rectangle(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def cat_and_dog(sample: DecodedSample) -> None:
    """The masks of the annotation, and the dog, which is smaller, on top in the map."""
    cat, dog = rectangle(sample.size, 2, 2, 30, 28), rectangle(sample.size, 20, 20, 38, 36)
    assert sample.objects is not None
    np.testing.assert_array_equal(sample.objects.masks, [cat, dog])
    categories = {segment.id: segment.category for segment in sample.segments}
    assert categories == {1: 0, 2: 1}
    np.testing.assert_array_equal(sample.ids, np.where(dog, 2, np.where(cat, 1, 0)))


def test_labelme(tmp_path: Path) -> None:
    mini.labelme(tmp_path / "root")
    manifest, found = pack(read_labelme(tmp_path / "root"), tmp_path / "out", workers=2)
    assert manifest.vocabulary.names == ("cat", "dog")
    assert all(manifest.vocabulary.isthing)
    assert manifest.measures == ("instances",)
    assert [sample.key for sample in found] == ["day_0", "night_1", "night_2"]
    for sample, size in zip(found, SIZES, strict=True):
        assert sample.size == size
        cat_and_dog(sample)
    only, _ = pack(read_labelme(tmp_path / "root", "night"), tmp_path / "night")
    assert only.counts.samples == 2


def test_labelme_agrees_with_supervision(tmp_path: Path) -> None:
    """Another reader's masks differ from ours only at the borders, which it rounds to whole pixels."""
    sv = pytest.importorskip("supervision")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "a.png")
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([60 + 35 * np.cos(angles), 45 + 30 * np.sin(angles)], 1).tolist()
    shapes = [
        mini.shape("leaf", circle, group_id=1),
        mini.shape("leaf", [[2.5, 3.5], [20, 4], [9, 30]], group_id=1),
        mini.shape("box", [[100, 80], [70, 50]], "rectangle"),
    ]
    mini.labelme_file(tmp_path / "a.json", "a.png", (90, 120), shapes)
    theirs = sv.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path), force_masks=True)
    ((_, _, wanted),) = list(theirs)
    _, (sample,) = pack(read_labelme(tmp_path), tmp_path / "out")
    assert sample.objects is not None
    assert [theirs.classes[i] for i in wanted.class_id] == ["leaf", "box"]
    assert sample.objects.labels.tolist() == [1, 0]
    for ours, mask in zip(sample.objects.masks, wanted.mask, strict=True):
        assert (ours & mask).sum() / (ours | mask).sum() > 0.9


def test_labelme_shapes(tmp_path: Path) -> None:
    mini.jpeg(np.random.default_rng(0), (40, 50), tmp_path / "pictures" / "a.jpg")
    shapes = [
        mini.shape("grass", mini.GRASS),
        mini.shape("ball", [[25, 20], [25, 30]], "circle"),
        mini.mask_shape("lawn", (40, 0, 49, 9)),
        mini.shape("ball", [[2, 2]], "point"),
        mini.shape("ball", [[0, 0], [4, 4]], "rectangle", group_id=7),
        mini.shape("ball", [[6, 0], [8, 4]], "rectangle", group_id=7),
    ]
    (tmp_path / "labels").mkdir()
    mini.labelme_file(tmp_path / "labels" / "a.json", "..\\pictures\\a.jpg", (40, 50), shapes)
    source = read_labelme(tmp_path, "labels", "pictures", "ball\ngrass,lawn:stuff")
    assert "1 shapes" in source.notes[0]
    manifest, (sample,) = pack(source, tmp_path / "out")
    assert manifest.measures == MEASURES
    ball, both, grass = sample.segments[1], sample.segments[2], sample.segments[0]
    assert (ball.category, both.category, grass.category) == (0, 0, 1)
    assert (sample.ids == ball.id).sum() == pytest.approx(np.pi * 100, rel=0.05)
    np.testing.assert_array_equal(
        sample.ids == both.id, rectangle((40, 50), 0, 0, 4, 4) | rectangle((40, 50), 6, 0, 8, 4)
    )
    stuff = rectangle((40, 50), 0, 10, 40, 40) | rectangle((40, 50), 40, 0, 50, 10)
    np.testing.assert_array_equal(sample.ids == grass.id, stuff & (sample.ids != ball.id))
    assert sample.objects is not None
    assert sample.objects.labels.tolist() == [0, 0]  # stuff is no object


@pytest.mark.parametrize(("change", "cause"), [
    (lambda data: data["shapes"][0].pop("points"), "points"),
    (lambda data: data["shapes"][0].update(label="zebra"), "zebra"),
    (lambda data: data.update(imageWidth=data["imageWidth"] + 1), "the annotation says"),
    (lambda data: data.update(imagePath="missing.jpg"), "is missing"),
    (lambda data: data["shapes"][0].update(points=[[900, 900], [950, 900], [950, 950]]), "no pixel"),
    (lambda data: data["shapes"][0].update(shape_type="spiral"), "spiral"),
])  # fmt: skip
def test_labelme_problems(change: Callable[[Any], object], cause: str, tmp_path: Path) -> None:
    mini.labelme(tmp_path / "root")
    path = tmp_path / "root" / "day" / "0.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    source = read_labelme(tmp_path / "root", vocabulary="cat,dog")
    assert any(cause in problem["cause"] for problem in problems(source, tmp_path / "out"))
    assert prepare(source, tmp_path / "out", skip_bad=True).counts.samples == 2


def test_labelme_damaged_file_and_turned_picture(tmp_path: Path) -> None:
    mini.labelme(tmp_path / "root")
    (tmp_path / "root" / "day" / "0.json").write_text('{"shapes": [')
    path = tmp_path / "root" / "night" / "1.jpg"
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(path, exif=exif)
    source = read_labelme(tmp_path / "root")
    found = problems(source, tmp_path / "out")
    assert [problem["file"] for problem in found] == ["root/day/0.json", "root/night/1.jpg"]
    assert not any("0.jpg" in note for note in source.notes), "it has a JSON file, which is damaged"
    assert "EXIF" in found[1]["cause"]
    (tmp_path / "root" / "day" / "empty").mkdir()
    with pytest.raises(DataError, match="no JSON file"):
        read_labelme(tmp_path / "root" / "day" / "empty")


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/images"])
def test_yolo(layout: str, tmp_path: Path) -> None:
    mini.yolo(tmp_path / "root", layout)
    manifest, found = pack(read_yolo(tmp_path / "root", "train"), tmp_path / "out", workers=2)
    assert manifest.vocabulary.names == ("cat", "dog")
    assert [c.id for c in manifest.vocabulary.categories] == [0, 2]
    assert manifest.counts.samples == 3
    for sample in found[:2]:
        cat_and_dog(sample)
    assert not found[2].ids.any()  # without a label file


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("0 0.5 0.5 0.2 0.2", "box"),
        ("1 0.1 0.1 0.5 0.1 0.5 0.5", "class number 1"),
        ("0 0.1 0.1 0.5 0.1 0.5", "even"),
        ("0 10 10 50 10 50 50", "outside"),
        ("cat 0.1 0.1 0.5 0.1 0.5 0.5", "class number"),
        ("0 0.1 nan 0.5 0.1 0.5 0.5", "outside"),
    ],
)
def test_yolo_problems(line: str, cause: str, tmp_path: Path) -> None:
    mini.yolo(tmp_path / "root")
    (tmp_path / "root" / "labels" / "train" / "0.txt").write_text(line)
    (problem,) = problems(read_yolo(tmp_path / "root", "train"), tmp_path / "out")
    assert problem["file"] == "labels/train/0.txt"
    assert "line 1" in problem["cause"]
    assert cause in problem["cause"]


def test_yolo_missing_parts(tmp_path: Path) -> None:
    mini.yolo(tmp_path / "root")
    (tmp_path / "root" / "images" / "train" / "1.jpg").unlink()
    (problem,) = read_yolo(tmp_path / "root", "train").problems
    assert problem.file == "labels/train/1.txt"
    with pytest.raises(DataError, match="images/val"):
        read_yolo(tmp_path / "root", "val")
    (tmp_path / "root" / "data.yaml").write_text("nc: 3\n")
    with pytest.raises(DataError, match=r"data\.yaml.*names"):
        read_yolo(tmp_path / "root", "train")
    (tmp_path / "root" / "data.yaml").unlink()
    with pytest.raises(DataError, match="--vocabulary"):
        read_yolo(tmp_path / "root", "train")
    assert read_yolo(tmp_path / "root", "train", "cat,bird,dog").vocabulary.names == ("cat", "bird", "dog")


def panoptic_of_maps(sample: DecodedSample, stuff: int, first: int, second: int) -> None:
    """Stuff, two objects of a class and the rest of it as a crowd, an object of another class, void."""
    classes, instances = mini.class_and_instance_maps()
    wanted = {
        (stuff, False, False): classes == 0,
        (first, True, True): (classes == 1) & (instances == 0),
        (second, True, False): classes == 2,
    }
    found = {(s.category, s.isthing, s.iscrowd): sample.ids == s.id for s in sample.segments}
    for key, mask in wanted.items():
        np.testing.assert_array_equal(found[key], mask)
    cats = [sample.ids == s.id for s in sample.segments if (s.category, s.iscrowd) == (first, False)]
    np.testing.assert_array_equal(cats, [(classes == 1) & (instances == n) for n in (1, 2)])
    np.testing.assert_array_equal(sample.ids == 0, classes == 255)
    assert sample.semantic is None


def test_class_and_instance_maps(tmp_path: Path) -> None:
    mini.maps(tmp_path / "root", "train")
    source = read_maps(tmp_path / "root", "train", instances="instances")
    manifest, found = pack(source, tmp_path / "out")
    assert manifest.vocabulary.labels == (("sky", "clouds"), ("cat",), ("dog", "puppy"))
    assert manifest.measures == MEASURES
    assert len(found) == 3
    for sample in found:
        panoptic_of_maps(sample, 0, 1, 2)


def test_class_maps(tmp_path: Path) -> None:
    mini.maps(tmp_path / "root", void=99)
    with pytest.raises(DataError, match="does not define: 99"):
        prepare(read_maps(tmp_path / "root"), tmp_path / "out")
    manifest, (sample, *_) = pack(read_maps(tmp_path / "root", void=[99]), tmp_path / "out")
    assert manifest.measures == ("semantic",)
    assert not any(manifest.vocabulary.isthing)
    classes, _ = mini.class_and_instance_maps()
    np.testing.assert_array_equal(sample.ids, np.where(classes == 255, 0, classes + 1))
    (tmp_path / "root" / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt"):
        read_maps(tmp_path / "root")
    assert len(read_maps(tmp_path / "root", vocabulary="sky,cat,dog").vocabulary) == 3


def test_maps_of_another_size_and_name(tmp_path: Path) -> None:
    mini.maps(tmp_path / "root")
    mini.png(np.zeros((9, 9)), tmp_path / "root" / "instances" / "a.0.png")
    (tmp_path / "root" / "labels" / "a.1.png").rename(tmp_path / "root" / "labels" / "b.png")
    found = problems(read_maps(tmp_path / "root", instances="instances"), tmp_path / "out")
    causes = {problem["file"]: problem["cause"] for problem in found}
    assert "9x9" in causes["instances/a.0.png"]
    assert "missing" in causes["labels/a.1.png"]
    assert "no image" in causes["labels/b.png"]


def test_voc_layout(tmp_path: Path) -> None:
    mini.voc_objects(tmp_path / "root")
    manifest, found = pack(read_voc_layout(tmp_path / "root", "train"), tmp_path / "out")
    assert manifest.vocabulary.isthing == (False, *[True] * 20)
    assert manifest.counts.samples == 2
    for sample in found:
        panoptic_of_maps(sample, 0, 3, 8)
    names = "0:nothing:stuff\n3:kiwi\n8:lynx"
    assert read_voc_layout(tmp_path / "root", "train", names).vocabulary.names == ("nothing", "kiwi", "lynx")


def test_cityscapes(tmp_path: Path) -> None:
    mini.cityscapes(tmp_path / "root")
    manifest, found = pack(read_cityscapes(tmp_path / "root"), tmp_path / "out")
    assert manifest.measures == MEASURES
    names = manifest.vocabulary.names
    assert len(names) == 19
    classes, instances = mini.class_and_instance_maps()
    for sample in found:
        by_name = {(names[s.category], s.iscrowd): sample.ids == s.id for s in sample.segments}
        assert [names[s.category] for s in sample.segments].count("person") == 3
        np.testing.assert_array_equal(by_name["person", True], (classes == 1) & (instances == 0))
        np.testing.assert_array_equal(by_name["car", False], classes == 2)
        np.testing.assert_array_equal(sample.ids == 0, (classes == 255) | (np.arange(40) < 3)[:, None])


def test_shares_divide_the_data_set(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "root").mkdir(exist_ok=True)
        mini.jpeg(np.random.default_rng(0), (40, 40), tmp_path / "root" / f"{number}.jpg")
        shapes = [mini.shape("cat" if number else "dog", mini.CAT)]
        mini.labelme_file(tmp_path / "root" / f"{number}.json", f"{number}.jpg", (40, 40), shapes)
    source = read_labelme(tmp_path / "root")
    train, val = (take_share(source, split, 0.3) for split in ("train", "val"))
    assert train.vocabulary == val.vocabulary
    keys = [{sample.key for sample in part.samples} for part in (train, val)]
    assert (len(keys[0]), len(keys[1])) == (7, 3)
    assert keys[0] | keys[1] == {str(number) for number in range(10)}
    prepare(val, tmp_path / "out")
    with pytest.raises(DataError, match="other options"):
        prepare(take_share(source, "val", 0.4), tmp_path / "out")
    with pytest.raises(SettingError, match="--split None"):
        take_share(source, None, 0.3)


@pytest.mark.parametrize(
    ("make", "arguments", "samples"),
    [
        (mini.labelme, ["labelme", "--split", "train", "--val", "0.3"], 2),
        (mini.yolo, ["yolo", "--split", "train"], 3),
        (mini.maps, ["maps", "--instances", "instances", "--void", "255"], 3),
        (mini.voc_objects, ["voc", "--split", "train"], 2),
        (mini.cityscapes, ["cityscapes"], 2),
    ],
)
def test_commands(make: Callable[[Path], None], arguments: list[str], samples: int, tmp_path: Path) -> None:
    make(tmp_path / "root")
    places = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out"), "--workers", "1"]
    done = CliRunner().invoke(app, ["prepare", *arguments, *places], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert open_shard_set(tmp_path / "out").manifest.counts.samples == samples


def test_root_that_is_no_folder(tmp_path: Path) -> None:
    mini.labelme(tmp_path / "root")
    with pytest.raises(UserError, match="--root"):
        read_labelme([tmp_path / "root", tmp_path / "root"])
    with pytest.raises(UserError, match="--split"):
        read_labelme(tmp_path / "root", "../root")
