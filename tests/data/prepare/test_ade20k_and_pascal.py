"""Benchmarks in miniature copies of their official layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mini_benchmarks as mini
import numpy as np
import pytest
from benchmark_shards import MAKE
from mini_benchmarks import samples
from PIL import Image

from odise_pl.data.decoding import DecodedSample
from odise_pl.data.manifest import Manifest, open_shard_set
from odise_pl.data.prepare.benchmarks import BENCHMARKS
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
    "pas20": "pascal_voc_20",
}
MAKE = {**MAKE, "pas20": mini.voc}


def pack(name: str, root: Path, out: Path, **options: Any) -> Manifest:
    return prepare(BENCHMARKS[name].read(root), out, **options)


def classes_of(sample: DecodedSample) -> np.ndarray:
    """The class map of the segments."""
    classes = np.full(sample.ids.shape, -1)
    for segment in sample.segments:
        assert not segment.iscrowd
        classes[sample.ids == segment.id] = segment.category
    return classes


def expected(name: str, made: mini.Mini) -> dict[int, np.ndarray]:
    if name == "pas20":  # without the background, the first class
        return {image: np.maximum(classes - 1, -1) for image, classes in made.classes.items()}
    if name != "pc59":
        return made.classes
    table = np.full(460, -1)
    table[np.array(CONTEXT_59) - 1] = np.arange(59)
    return {image: table[classes] for image, classes in made.classes.items()}


@pytest.mark.parametrize("name", MAKE)
def test_shards_equal_label_files(name: str, tmp_path: Path) -> None:
    made = MAKE[name](tmp_path / "root")
    manifest, found = pack(name, tmp_path / "root", tmp_path / "out"), samples(tmp_path / "out")
    pixels = {image_ids([path.stem])[0]: np.asarray(Image.open(path)) for path in tmp_path.rglob("*.jpg")}
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
        if name == "ade150":
            objects_cover_stuff(sample, made.things[image], classes, manifest.vocabulary.isthing)


def objects_cover_stuff(
    sample: DecodedSample, objects: np.ndarray, semantic: np.ndarray, isthing: Sequence[bool]
) -> None:
    kind, number = np.moveaxis(objects, -1, 0)
    stuff = np.where(np.array([*isthing, True])[semantic], -1, semantic)
    np.testing.assert_array_equal(classes_of(sample), np.where(number > 0, kind, stuff))
    pairs = {(k, n) for k, n in zip(kind.flat, number.flat, strict=True) if n}
    things = [s for s in sample.segments if s.isthing]
    assert sorted(s.category for s in things) == sorted(k for k, _ in pairs)
    for thing in things:  # one object each
        assert len({*number[sample.ids == thing.id].tolist()}) == 1


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


@pytest.mark.parametrize(
    ("name", "part", "archive"),
    [
        ("ade150", "annotations_instance", "annotations_instance.tar"),
        ("ade847", "ADE20K_2021_17_01", "ADE20K_2021_17_01.zip"),
        ("pc59", "trainval", "trainval.tar.gz"),
    ],
)
def test_missing_part_is_named_with_its_archive(name: str, part: str, archive: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / part)
    with pytest.raises(DataError, match=rf"{archive}.*docs/data\.md"):
        BENCHMARKS[name].read(tmp_path / "root")


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
    ("ade847", "ADE/validation/*/*/*2_seg.png", other_mode, "channels"),
    ("pc459", "trainval/2008*.mat", cut, "is not a MATLAB file with a LabelMap"),
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
    problems = BENCHMARKS["ade150"].read(tmp_path / "root").problems
    assert ["has no image of this name" in problem.cause for problem in problems] == [True, True]


def test_image_ids() -> None:
    assert image_ids(["a/ADE_val_00000012", "ADE_val_00000003"]) == [12, 3]
    assert image_ids(["2007_000033"]) == [2007000033]
    for unusable in (["1_23", "12_3"], ["①", "7"], ["9" * 30, "7"]):
        assert image_ids(unusable) == [1, 2]


@pytest.mark.parametrize("name", [b"\xff_2.jpg", b"a\n_2.jpg"])
def test_invalid_file_name_is_rejected(tmp_path: Path, name: bytes) -> None:
    mini.ade150(tmp_path / "root")
    folder = tmp_path / "root/ADEChallengeData2016/images/validation"
    (folder / "ADE_val_00000002.jpg").rename(folder / os.fsdecode(name))
    with pytest.raises(DataError, match=f"{folder}: an image name is not a path"):
        BENCHMARKS["ade150"].read(tmp_path / "root")


def test_duplicate_image_names_are_listed(tmp_path: Path) -> None:
    mini.ade847(tmp_path / "root")
    jpeg = next((tmp_path / "root").rglob("*.jpg"))
    for path in (jpeg, jpeg.with_name(f"{jpeg.stem}_seg.png")):
        other = path.parent.parent / "other" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    with pytest.raises(DataError) as error:
        BENCHMARKS["ade847"].read(tmp_path / "root")
    assert f"{jpeg.parent.name}/{jpeg.name}" in str(error.value)
    assert f"other/{jpeg.name}" in str(error.value)


def test_image_list_of_windows_editor_and_unsafe_entry(tmp_path: Path) -> None:
    mini.voc(tmp_path / "root")
    (path,) = (tmp_path / "root").rglob("val.txt")
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert len(BENCHMARKS["pas21"].read(tmp_path / "root").samples) == 3
    path.write_text(f"{text}../JPEGImages/2009_000001\n")
    with pytest.raises(DataError, match=str(path)):
        BENCHMARKS["pas21"].read(tmp_path / "root")


def test_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Segmentation/test\.txt is missing"):
        BENCHMARKS["pas21"].read(tmp_path, "test")
    mini.voc(tmp_path / "root", "train")
    source = BENCHMARKS["pas21"].read([tmp_path / "root"], "train")
    assert prepare(source, tmp_path / "out") == prepare(source, tmp_path / "out")
    assert open_shard_set(tmp_path / "out").manifest.name == "pas21_train"
