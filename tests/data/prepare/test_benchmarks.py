"""Benchmarks in miniature copies of their official layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini_benchmarks as mini
import numpy as np
import pytest
from benchmark_shards import MAKE
from mini_benchmarks import samples
from PIL import Image
from test_archives import Pack, gzipped, tarred, zipped

from odise_pl.data.decoding import DecodedSample
from odise_pl.data.manifest import Manifest, open_shard_set
from odise_pl.data.prepare.benchmarks import read_benchmark
from odise_pl.data.prepare.listing import image_ids
from odise_pl.data.prepare.packing import PROBLEMS, prepare
from odise_pl.data.prepare.pascal import CONTEXT_59
from odise_pl.data.records import DataError
from odise_pl.vocabulary import MEASURES, load_vocabulary

VOCABULARIES = {
    "ade150": "ade20k_150",
    "ade847": "ade20k_847",
    "pc59": "pascal_context_59",
    "pc459": "pascal_context_459",
    "pas21": "pascal_voc_21",
}


def pack(name: str, root: Path, out: Path, **options: Any) -> Manifest:
    return prepare(read_benchmark(name, root), out, **options)


def classes_of(sample: DecodedSample) -> np.ndarray:
    """The class map of the segments."""
    classes = np.full(sample.ids.shape, -1)
    for segment in sample.segments:
        assert not segment.iscrowd
        classes[sample.ids == segment.id] = segment.category
    return classes


def expected(name: str, made: mini.Mini) -> dict[int, np.ndarray]:
    if name != "pc59":
        return made.classes
    table = np.full(460, -1)
    table[np.array(CONTEXT_59) - 1] = np.arange(59)
    return {image: table[classes] for image, classes in made.classes.items()}


def with_other_images(root: Path) -> dict[int, np.ndarray]:
    """Save the images in other formats; returns their pixels by id."""
    pixels = {}
    for jpeg, suffix in zip(sorted(root.rglob("*.jpg")), (".png", ".tif", ".JPG", ".png"), strict=False):
        Image.open(jpeg).save(jpeg.with_suffix(suffix))
        pixels[image_ids([jpeg.stem])[0]] = np.asarray(Image.open(jpeg.with_suffix(suffix)))
        jpeg.unlink()
    return pixels


@pytest.mark.parametrize("name", MAKE)
def test_shards_equal_label_files(name: str, tmp_path: Path) -> None:
    made = MAKE[name](tmp_path / "root")
    pixels = with_other_images(tmp_path / "root")
    manifest, found = pack(name, tmp_path / "root", tmp_path / "out"), samples(tmp_path / "out")
    assert manifest.vocabulary == load_vocabulary(VOCABULARIES[name])
    assert manifest.measures == (MEASURES if name == "ade150" else ("semantic",))
    assert manifest.counts.samples == 3
    assert manifest.counts.segments == sum(len(sample.segments) for sample in found.values())
    assert found.keys() == made.classes.keys()
    for image, classes in expected(name, made).items():
        sample = found[image]
        np.testing.assert_array_equal(np.asarray(sample.image), pixels[image])
        assert all(s.isthing == manifest.vocabulary.isthing[s.category] for s in sample.segments)
        semantic = classes_of(sample) if sample.semantic is None else sample.semantic
        np.testing.assert_array_equal(semantic, classes)
        assert (sample.semantic is None) == (name != "ade150")


def test_objects_of_ade_cover_stuff(tmp_path: Path) -> None:
    made = mini.ade150(tmp_path / "root")
    pack("ade150", tmp_path / "root", tmp_path / "out")
    isthing = np.array(load_vocabulary("ade20k_150").isthing)
    for image, sample in samples(tmp_path / "out").items():
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
def test_ade_class_list_is_checked(tmp_path: Path, mark: str) -> None:
    mini.ade150(tmp_path / "root")
    path = tmp_path / "root/ADEChallengeData2016/objectInfo150.txt"
    text = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t9\t1\twall\n9\t0.1\t9\t9\t0\twindowpane, window \n"
        "22 \t0.1\t9\t9\t1\twater\n110\t0.1\t9\t9\t1\tswimming pool, swimming bath\n"
    )
    path.write_text(text, encoding=mark)
    read_benchmark("ade150", tmp_path / "root")
    path.write_text(text.replace("wall", "sky"), encoding=mark)
    with pytest.raises(DataError, match=f"{path}: class 1 is 'sky'"):
        read_benchmark("ade150", tmp_path / "root")


def test_class_numbers_are_the_official_ones() -> None:
    few, many = load_vocabulary("pascal_context_59"), load_vocabulary("pascal_context_459")
    theirs = [many.categories[many.index_of(value)].name for value in CONTEXT_59]
    differing = [pair for pair in zip(few.names, theirs, strict=True) if pair[0] != pair[1]]
    assert [set(pair) for pair in differing] == [{"table", "dining table"}]
    path = Path(__file__).parents[3].parent / "shared" / "vocabularies" / "ade20k_instance100_to_150.json"
    if not path.exists():
        pytest.skip(f"no official mapping at {path}")
    mapping = json.loads(path.read_text())["mapping"]
    things = [c.id + 1 for c in load_vocabulary("ade20k_150").categories if c.isthing]
    assert [mapping[str(k)] for k in range(1, 101)] == things
    context = json.loads(path.with_name("pascal_context_59_from_459.json").read_text())["label_ids"]
    assert tuple(context[1:]) == CONTEXT_59


def test_large_photographs_are_scaled_to_512(tmp_path: Path) -> None:
    made = mini.ade847(tmp_path / "root", scale=16)
    pack("ade847", tmp_path / "root", tmp_path / "out")
    for image, sample in samples(tmp_path / "out").items():
        height, width = made.classes[image].shape
        assert min(sample.size) == 512
        assert max(sample.size) == round(max(height, width) * 512 / min(height, width))
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
def test_archives_give_same_shards_as_folders(name: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "root")
    loose = pack(name, tmp_path / "root", tmp_path / "loose")
    (tmp_path / "download").mkdir()
    for folder, archive, pack_one in PARTS[name]:
        pack_one(tmp_path / "root" / folder, tmp_path / "download" / archive)
    workers = 2 if name == "pc59" else 1
    assert pack(name, tmp_path / "download", tmp_path / "packed", workers=workers).shards == loose.shards
    for folder, archive, _ in PARTS[name]:
        shutil.move(tmp_path / "root" / folder, tmp_path / "elsewhere")
        with pytest.raises(DataError, match=rf"{archive}.*data/README\.md"):
            read_benchmark(name, tmp_path / "root")
        shutil.move(tmp_path / "elsewhere", tmp_path / "root" / folder)


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


def other_mode(path: Path) -> None:
    image = Image.open(path)
    image.convert("RGB" if image.mode in "LP" else "L").save(path)


FAULTS = [
    ("ade150", "annotations/validation/*2.png", cut, "cannot be decoded"),
    ("ade150", "annotations/validation/*2.png", unknown, "does not define: 200"),
    ("ade150", "annotations_instance/validation/*2.png", wrong_size, "pixels, "),
    ("ade150", "annotations_instance/validation/*2.png", Path.unlink, "is missing"),
    ("ade847", "ADE/validation/*/*/*2.jpg", cut, "cannot be decoded"),
    ("ade847", "ADE/validation/*/*/*2_seg.png", other_mode, "channels"),
    ("pc459", "trainval/2008*.mat", cut, "is not a MATLAB file with a LabelMap"),
    ("pc59", "VOC2010/JPEGImages/2008*.jpg", Path.unlink, "is missing"),
    ("pas21", "SegmentationClass/2008*.png", other_mode, "channels"),
    ("pas21", "SegmentationClass/2008*.png", wrong_size, "pixels, its image"),
]


@pytest.mark.parametrize(("name", "pattern", "spoil", "cause"), FAULTS)
def test_problems_are_listed(
    name: str, pattern: str, spoil: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    MAKE[name](tmp_path / "root")
    (path,) = [p for p in (tmp_path / "root").rglob("*") if p.is_file() and p.match(pattern)]
    spoil(path)
    assert pack(name, tmp_path / "root", tmp_path / "out", skip_bad=True).counts.samples == 2
    problems = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    wanted = path.relative_to(tmp_path / "root").as_posix()
    assert [p for p in problems if p["file"] == wanted and cause in p["cause"]], problems


def test_label_file_without_image_is_a_problem(tmp_path: Path) -> None:
    mini.ade150(tmp_path / "root")
    (tmp_path / "root/ADEChallengeData2016/images/validation/ADE_val_00000003.jpg").unlink()
    problems = read_benchmark("ade150", tmp_path / "root").problems
    assert ["has no image of this name" in problem.cause for problem in problems] == [True, True]


def test_image_ids() -> None:
    assert image_ids(["a/ADE_val_00000012", "ADE_val_00000003"]) == [12, 3]
    assert image_ids(["2007_000033"]) == [2007000033]
    assert image_ids(["1_23", "12_3"]) == [1, 2]
    assert image_ids(["img²_5", "①_7"]) == [5, 7]
    assert image_ids(["①", "7"]) == [1, 2]
    assert image_ids(["9" * 30, "7"]) == [1, 2]


def rename(root: Path, stem: str, new: bytes) -> None:
    """Give the files of an image another name."""
    for path in root.rglob(f"{stem}*"):
        path.rename(path.with_name(os.fsdecode(new) + path.suffix))


@pytest.mark.parametrize("name", [b"\xff_2", b"a\n_2"])
def test_invalid_file_name_is_a_problem(tmp_path: Path, name: bytes) -> None:
    mini.ade150(tmp_path / "root")
    rename(tmp_path / "root", "ADE_val_00000002", name)
    assert pack("ade150", tmp_path / "root", tmp_path / "out", skip_bad=True).counts.samples == 2
    (problem,) = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    assert "its name is not a path" in problem["cause"]


def test_duplicate_image_names_are_listed(tmp_path: Path) -> None:
    mini.ade847(tmp_path / "root")
    jpeg = next((tmp_path / "root").rglob("*.jpg"))
    for path in (jpeg, jpeg.with_name(f"{jpeg.stem}_seg.png")):
        other = path.parent.parent / "other" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    with pytest.raises(DataError) as error:
        read_benchmark("ade847", tmp_path / "root")
    assert f"{jpeg.parent.name}/{jpeg.name}" in str(error.value)
    assert f"other/{jpeg.name}" in str(error.value)


def test_image_list_of_windows_editor_and_unsafe_entry(tmp_path: Path) -> None:
    mini.voc(tmp_path / "root")
    (path,) = (tmp_path / "root").rglob("val.txt")
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert len(read_benchmark("pas21", tmp_path / "root").samples) == 3
    path.write_text(f"{text}../JPEGImages/2009_000001\n")
    with pytest.raises(DataError, match=str(path)):
        read_benchmark("pas21", tmp_path / "root")


def test_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--split test: pas21 has val, train, trainval"):
        read_benchmark("pas21", tmp_path, "test")
    mini.voc(tmp_path / "root", "train")
    source = read_benchmark("pas21", [tmp_path / "root"], "train")
    assert prepare(source, tmp_path / "out") == prepare(source, tmp_path / "out")
    assert open_shard_set(tmp_path / "out").manifest.name == "pas21_train"
