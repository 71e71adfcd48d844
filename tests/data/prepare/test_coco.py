"""COCO's panoptic layout: problems, captions, categories, file names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mini_coco import CATEGORIES, MiniCoco, make_coco, pack
from PIL import Image

from odise_pl.data.label_maps import encode_ids
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.reading import RawSample, read_shard
from odise_pl.data.records import DataError
from odise_pl.vocabulary import load_vocabulary

IMAGE, PNG = "000000000002.jpg", "000000000002.png"
Damage = Callable[[MiniCoco], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turned_by_exif(coco: MiniCoco) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(coco.images / IMAGE, exif=exif)


def narrow_png(coco: MiniCoco) -> None:
    image = Image.open(coco.pngs / PNG)
    image.crop((0, 0, image.width - 1, image.height)).save(coco.pngs / PNG)


def unlisted(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "extra.png")


def same_key(coco: MiniCoco) -> None:
    (coco.images / IMAGE).rename(coco.images / "000000000001.jpeg")
    coco.annotation["images"][1]["file_name"] = "000000000001.jpeg"


def annotations(coco: MiniCoco) -> Any:
    return coco.annotation["annotations"]


def segments(coco: MiniCoco) -> Any:
    return annotations(coco)[1]["segments_info"]


def of_image(**fields: object) -> Damage:
    """Change the entry of the second image; ``...`` removes a field."""
    return lambda coco: change(coco.annotation["images"][1], fields)


def of_segment(**fields: object) -> Damage:
    return lambda coco: change(segments(coco)[0], fields)


def change(entry: dict[str, object], fields: dict[str, object]) -> None:
    entry.update(fields)
    for field in [field for field, value in fields.items() if value is ...]:
        del entry[field]


MAPS = "annotations/panoptic_train2017"
IMAGE_FILE, PNG_FILE = f"train2017/{IMAGE}", f"{MAPS}/{PNG}"
JSON_FILE, CAPTIONS = "annotations/panoptic_train2017.json", "annotations/captions_train2017.json"
NAN = float("nan")
# Damage, file and cause of the problem, and number of usable samples of four.
PROBLEM_CAUSES: list[tuple[Damage, str, str, int]] = [
    (lambda coco: (coco.images / IMAGE).unlink(), IMAGE_FILE, "is missing", 3),
    (lambda coco: cut(coco.images / IMAGE), IMAGE_FILE, "cannot be decoded (image file is truncated", 3),
    (lambda coco: cut(coco.pngs / PNG), PNG_FILE, "cannot be decoded (", 3),
    (turned_by_exif, IMAGE_FILE, "EXIF orientation 6 is not applied", 3),
    (lambda coco: Image.new("L", (9, 9)).save(coco.pngs / PNG), PNG_FILE, "PNG of mode L", 3),
    (narrow_png, PNG_FILE, "the PNG has", 3),
    (lambda coco: segments(coco).pop(), PNG_FILE, "pixels of ids that segments_info lacks", 3),
    (lambda coco: segments(coco).append({**segments(coco)[0], "id": 12345}), PNG_FILE, "lists: 12345", 3),
    (of_image(height=7), IMAGE_FILE, "the annotation says", 3),
    (of_image(id=1), JSON_FILE, "has the id 1 of another image", 2),
    (same_key, JSON_FILE, "gives the key of another image", 2),
    (of_image(width=...), JSON_FILE, "images[1] has no width", 3),
    (of_image(file_name="../secret.jpg"), JSON_FILE, "not a path below its folder: '../secret.jpg'", 3),
    (of_image(id=-1), JSON_FILE, "images[1] has id -1", 3),
    (lambda coco: coco.annotation["images"].pop(1), JSON_FILE, "have image_id 2, which images lacks", 3),
    (lambda coco: annotations(coco).pop(1), JSON_FILE, "no annotations have image_id 2", 3),
    (lambda coco: annotations(coco).append(annotations(coco)[1]), JSON_FILE, "2 annotations have", 3),
    (lambda coco: unlisted(coco.images), "train2017/extra.png", "no entry of images in panoptic_", 4),
    (lambda coco: unlisted(coco.pngs), f"{MAPS}/extra.png", "no entry of annotations", 4),
    (lambda coco: annotations(coco)[1].pop("segments_info"), JSON_FILE, "[1] has no segments_info", 3),
    (lambda coco: segments(coco)[0].update(id=segments(coco)[1]["id"]), JSON_FILE, "duplicate ids", 3),
    (of_segment(category_id=55), JSON_FILE, "[0] has category_id 55, which categories lacks", 3),
    (of_segment(bbox=[1, 2, NAN, 4]), JSON_FILE, "segments_info[0] has bbox", 3),
    (of_segment(id=0), JSON_FILE, "segments_info[0] has id 0", 3),
    (lambda coco: coco.captions["annotations"][3].pop("caption"), CAPTIONS, "[3] has no caption", 4),
]


@pytest.mark.parametrize(
    ("damage", "file", "cause", "usable"),
    PROBLEM_CAUSES,
    ids=lambda value: None if callable(value) else str(value)[:40],
)
def test_problems_are_listed(tmp_path: Path, damage: Damage, file: str, cause: str, usable: int) -> None:
    coco = make_coco(tmp_path / "coco", 4)
    damage(coco)
    coco.save()
    assert pack(coco.root, tmp_path / "out", skip_bad=True).counts.samples == usable
    problems = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    assert [p for p in problems if p["file"] == file and cause in p["cause"]], problems


@pytest.mark.parametrize(
    ("path", "archive"),
    [
        ("", "--root"),
        ("annotations/panoptic_train2017.json", "panoptic_annotations_trainval2017.zip"),
        ("annotations/panoptic_train2017", "panoptic_train2017.zip"),
    ],
)
def test_missing_part_is_named_with_its_archive(tmp_path: Path, path: str, archive: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    target = coco.root / path
    target.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{target}.*{archive}.*cocodataset\.org"):
        read_coco(coco.root, "train2017")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("[]", "expected an object"),
        (json.dumps({"categories": CATEGORIES, "annotations": []}), "no images"),
        (json.dumps({"categories": CATEGORIES, "images": []}), "no annotations"),
        (json.dumps({"categories": [], "images": [], "annotations": []}), "no classes"),
        ("[" * 200_000, "nested"),
        (b'{"categories": "d\xefsc"}', "UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusable_annotation_file_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.json.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        read_coco(coco.root, "train2017")
    assert str(coco.json) in str(error.value)


def test_captions_are_optional(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    coco.captions["annotations"] += [
        {"id": 90, "image_id": 77, "caption": "elsewhere"},
        {"id": 91, "image_id": 1, "caption": " "},
    ]
    coco.save()
    source = read_coco(coco.root, "train2017")
    unchecked, skipped = source.notes
    assert unchecked.startswith("annotations/captions_train2017.json lists no images")
    assert skipped.startswith("2 captions")
    assert source.samples[0].captions == ("caption 0 of image 1", "caption 1 of image 1")
    (coco.root / "annotations" / "captions_train2017.json").unlink()
    assert read_coco(coco.root, "train2017").samples[0].captions == ()


def test_void_image_with_dotted_name_in_subfolder(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    image, annotation = coco.annotation["images"][0], coco.annotation["annotations"][0]
    annotation["segments_info"] = []
    void = np.zeros((image["height"], image["width"]), dtype=np.int64)
    (coco.pngs / annotation["file_name"]).write_bytes(encode_ids(void))
    (coco.images / "cam.1").mkdir()
    (coco.images / "000000000001.jpg").rename(coco.images / "cam.1" / "frame.01.jpg")
    image["file_name"] = "cam.1/frame.01.jpg"
    coco.save()
    assert read_coco(coco.root, "train2017").samples[0].key == "cam_1_frame_01"
    pack(coco.root, tmp_path / "out")


# Categories


def test_packaged_vocabulary_is_chosen_for_its_categories(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    assert read_coco(coco.root, "train2017").vocabulary.names == ("square", "disc", "ground")
    annotation = coco.annotation["annotations"][0]
    for segment, category in zip(annotation["segments_info"], (1, 7, 200), strict=True):
        segment["category_id"] = category
    official = load_vocabulary("coco_panoptic").categories
    listed = [{"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)} for c in official]
    coco.annotation["categories"] = listed
    coco.save()
    source = read_coco(coco.root, "train2017")
    assert source.vocabulary.name == "coco_panoptic"
    assert [segment.category for segment in source.samples[0].segments] == [0, 6, 132]
    own = read_coco(coco.root, "train2017", "annotation").vocabulary
    assert (own.name, own.names[-1]) == ("coco_train2017", "rug-merged")
    coco.annotation["categories"][0]["name"] = "robot"
    coco.save()
    assert read_coco(coco.root, "train2017").vocabulary.name == "coco_train2017"


def test_named_vocabulary_must_agree(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    with pytest.raises(DataError, match=r"category 1 is thing 'square', which .*'coco_panoptic' lacks"):
        read_coco(coco.root, "train2017", "coco_panoptic")
    with pytest.raises(DataError, match="no vocabulary 'nonsense'"):
        read_coco(coco.root, "train2017", "nonsense")
    path = tmp_path / "mine.json"
    mine = [{"id": 5, "name": "more"}, *(c | {"isthing": bool(c["isthing"])} for c in CATEGORIES)]
    path.write_text(json.dumps({"categories": mine}))
    source = read_coco(coco.root, "train2017", str(path))
    assert [segment.category for segment in source.samples[0].segments] == [1, 2, 3]
    path.write_text(json.dumps({"categories": mine[:3]}))
    with pytest.raises(DataError, match=r"category 90 is stuff 'ground'.* lacks"):
        read_coco(coco.root, "train2017", str(path))


def categories(*changes: dict[str, object]) -> list[dict[str, object]]:
    return [{**category, **change} for category, change in zip(CATEGORIES, changes, strict=True)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({"isthing": value}, "category 'ground' has .*isthing") for value in (..., 2)),
        ({"id": 7}, "2 categories have the id 7"),
        ({"id": True}, "has id True"),
        ({"name": " "}, "empty name"),
    ],
)
def test_invalid_category_is_named(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = categories({}, {}, {})
    change(coco.annotation["categories"][2], fields)
    coco.save()
    with pytest.raises(DataError, match=rf"panoptic_train2017\.json: .*{message}"):
        read_coco(coco.root, "train2017")


def test_duplicate_category_names_need_a_vocabulary(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = categories({"name": "other"}, {"name": "Other"}, {})
    coco.save()
    with pytest.raises(DataError, match=r"'other'.*'Other'.*--vocabulary FILE\.json"):
        read_coco(coco.root, "train2017")
    named = categories({"name": "box", "official": "other"}, {"name": "ball", "official": "other"}, {})
    (tmp_path / "names.json").write_text(json.dumps({"categories": named}))
    source = read_coco(coco.root, "train2017", str(tmp_path / "names.json"))
    assert source.vocabulary.names == ("box", "ball", "ground")


# Files


def test_byte_order_marks_are_read(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    before = read_coco(coco.root, "train2017")
    for path in (coco.root / "annotations").glob("*.json"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_coco(coco.root, "train2017").samples == before.samples


@pytest.mark.parametrize("name", ["数据 a#b x*y", "50% {0..2} a::b"])
def test_unusual_folder_and_split_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = make_coco(tmp_path / name / "coco", 1, split=name)
    monkeypatch.chdir(tmp_path)
    pack(Path(name) / "coco", Path(name), name)
    shards = open_shard_set(Path(name))
    assert shards.manifest.source.split == name
    (sample,) = read_shard(shards.urls[0], [0])
    assert isinstance(sample, RawSample)
    assert sample.members["jpg"] == (coco.images / "000000000001.jpg").read_bytes()


def test_split_outside_root_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--split.* not a path below its folder"):
        read_coco(tmp_path, "../train2017")
