from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pack
from mini_coco import CATEGORIES, MiniCoco, colours, make_coco
from PIL import Image

from odise_pl.data.decoding import decode
from odise_pl.data.manifest import check_shards
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.coco_instances import read_coco_instances
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.prepare.validate import examine_instances
from odise_pl.data.reading import RawSample, read_shard
from odise_pl.data.records import DataError, key_of
from odise_pl.vocabulary import load_vocabulary

IMAGE, PNG = "000000000002.jpg", "000000000002.png"


def missing_image(coco: MiniCoco) -> None:
    (coco.images / IMAGE).unlink()


def missing_png(coco: MiniCoco) -> None:
    (coco.pngs / PNG).unlink()


def truncated_image(coco: MiniCoco) -> None:
    content = (coco.images / IMAGE).read_bytes()
    (coco.images / IMAGE).write_bytes(content[: len(content) // 2])


def truncated_png(coco: MiniCoco) -> None:
    content = (coco.pngs / PNG).read_bytes()
    (coco.pngs / PNG).write_bytes(content[: len(content) // 2])


def empty_image(coco: MiniCoco) -> None:
    (coco.images / IMAGE).write_bytes(b"")


def text_for_image(coco: MiniCoco) -> None:
    (coco.images / IMAGE).write_text("<html>404 not found</html>")


def animated_image(coco: MiniCoco) -> None:
    image = Image.open(coco.images / IMAGE)
    image.save(coco.images / IMAGE, format="webp", save_all=True, append_images=[image.rotate(180)])


def letter_for_orientation(coco: MiniCoco) -> None:
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0A\0\0\0" + bytes(4)
    Image.new("RGB", (30, 30)).save(coco.images / IMAGE, exif=block)


def grey_png(coco: MiniCoco) -> None:
    Image.open(coco.pngs / PNG).convert("L").save(coco.pngs / PNG)


def id_without_segment(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"].pop()


def segment_without_pixel(coco: MiniCoco) -> None:
    segments = coco.annotation["annotations"][1]["segments_info"]
    segments.append({**segments[0], "id": 12345})


def wrong_size_in_annotation(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["height"] += 1


def wrong_size_of_png(coco: MiniCoco) -> None:
    image = Image.open(coco.pngs / PNG)
    image.crop((0, 0, image.width - 1, image.height)).save(coco.pngs / PNG)


def turned_by_exif(coco: MiniCoco) -> None:
    image = Image.open(coco.images / IMAGE)
    exif = image.getexif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(coco.images / IMAGE, exif=exif)
    coco.annotation["images"][1]["width"] = image.width
    if image.width == image.height:
        image.crop((0, 0, image.width, image.height - 1)).save(coco.images / IMAGE, exif=exif)


def unknown_category(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0]["category_id"] = 55


def same_image_id(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["id"] = 1


def same_image_file(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["file_name"] = "000000000001.jpg"


def same_key(coco: MiniCoco) -> None:
    (coco.images / IMAGE).rename(coco.images / "000000000001.jpeg")
    coco.annotation["images"][1]["file_name"] = "000000000001.jpeg"


def same_segment_id(coco: MiniCoco) -> None:
    segments = coco.annotation["annotations"][1]["segments_info"]
    segments[1]["id"] = segments[0]["id"]


def two_annotations(coco: MiniCoco) -> None:
    coco.annotation["annotations"].append(coco.annotation["annotations"][1])


def no_annotation(coco: MiniCoco) -> None:
    del coco.annotation["annotations"][1]


def no_image_entry(coco: MiniCoco) -> None:
    del coco.annotation["images"][1]


def unlisted_image(coco: MiniCoco) -> None:
    Image.new("RGB", (8, 8)).save(coco.images / "extra.jpg")


def unlisted_png(coco: MiniCoco) -> None:
    Image.new("RGB", (8, 8)).save(coco.pngs / "extra.png")


def image_without_width(coco: MiniCoco) -> None:
    del coco.annotation["images"][1]["width"]


def image_without_name(coco: MiniCoco) -> None:
    del coco.annotation["images"][1]["file_name"]


def image_with_empty_name(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["file_name"] = ""


def image_beside_the_root(coco: MiniCoco) -> None:
    (coco.root.parent / "secret.jpg").write_bytes((coco.images / IMAGE).read_bytes())
    coco.annotation["images"][1]["file_name"] = "../../secret.jpg"


def image_at_an_absolute_path(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["file_name"] = str(coco.images / IMAGE)


def image_with_nul(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["file_name"] = "a\0.jpg"


def image_with_half_a_character(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["file_name"] = "\ud800.jpg"


def map_beside_the_root(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["file_name"] = "../../" + PNG


def infinite_area(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0]["area"] = float("inf")


def nan_in_box(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0]["bbox"][2] = float("nan")


def true_for_id(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["id"] = True


def huge_id(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["id"] = 10**30


def negative_height(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["height"] = -3


def negative_id(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["id"] = -1
    coco.annotation["annotations"][1]["image_id"] = -1


def text_for_id(coco: MiniCoco) -> None:
    coco.annotation["images"][1]["id"] = "2"


def annotation_without_segments(coco: MiniCoco) -> None:
    del coco.annotation["annotations"][1]["segments_info"]


def segment_without_area(coco: MiniCoco) -> None:
    del coco.annotation["annotations"][1]["segments_info"][0]["area"]


def short_box(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0]["bbox"] = [1, 2]


def segment_id_zero(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0]["id"] = 0


def segment_is_list(coco: MiniCoco) -> None:
    coco.annotation["annotations"][1]["segments_info"][0] = [1, 2]


def caption_without_text(coco: MiniCoco) -> None:
    del coco.captions["annotations"][3]["caption"]


PROBLEM_CAUSES = [
    (missing_image, f"train2017/{IMAGE}", "is missing"),
    (missing_png, f"annotations/panoptic_train2017/{PNG}", "is missing"),
    (truncated_image, f"train2017/{IMAGE}", "cannot be decoded (image file is truncated"),
    (truncated_png, f"annotations/panoptic_train2017/{PNG}", "cannot be decoded ("),
    (empty_image, f"train2017/{IMAGE}", "the file is empty"),
    (text_for_image, f"train2017/{IMAGE}", "not an image of a known format"),
    (animated_image, f"train2017/{IMAGE}", "WEBP file of several pictures"),
    (letter_for_orientation, f"train2017/{IMAGE}", "the image has 30x30 pixels"),
    (grey_png, f"annotations/panoptic_train2017/{PNG}", "PNG of mode L"),
    (id_without_segment, f"annotations/panoptic_train2017/{PNG}", "pixels of ids that segments_info lacks"),
    (segment_without_pixel, f"annotations/panoptic_train2017/{PNG}", "segments_info lists: 12345"),
    (wrong_size_in_annotation, f"train2017/{IMAGE}", "the annotation says"),
    (wrong_size_in_annotation, f"annotations/panoptic_train2017/{PNG}", "the annotation says"),
    (wrong_size_of_png, f"annotations/panoptic_train2017/{PNG}", "the PNG has"),
    (turned_by_exif, f"train2017/{IMAGE}", "EXIF orientation 6 is not applied"),
    (unknown_category, "", "segments_info[0] has category_id 55, which categories lacks"),
    (same_image_id, "", "has the id 1 of another image"),
    (same_image_file, "", "has the file_name 000000000001.jpg of another image"),
    (same_key, "", "gives the key of another image"),
    (same_segment_id, "", "segments_info has ids twice"),
    (two_annotations, "", "2 annotations have image_id 2"),
    (no_annotation, "", "no annotation has image_id 2"),
    (no_image_entry, "", "annotations[1] has image_id 2, which images lacks"),
    (no_image_entry, f"train2017/{IMAGE}", "no entry of images"),
    (unlisted_image, "train2017/extra.jpg", "no entry of images in panoptic_train2017.json names it"),
    (unlisted_png, "annotations/panoptic_train2017/extra.png", "no entry of annotations"),
    (image_without_width, "", "images[1] has no width"),
    (image_without_name, "", "images[1] has no file_name"),
    (image_with_empty_name, "", "images[1] has an empty file_name"),
    (
        image_beside_the_root,
        "",
        "images[1] has a file_name that is no path below its folder: '../../secret.jpg'",
    ),
    (image_at_an_absolute_path, "", "images[1] has a file_name that is no path below its folder: '/"),
    (image_with_nul, "", "images[1] has a file_name that is"),
    (image_with_half_a_character, "", "images[1] has file_name"),
    (map_beside_the_root, "", "annotations[1] has a file_name that is"),
    (infinite_area, "", "segments_info[0] has area inf"),
    (nan_in_box, "", "segments_info[0] has bbox"),
    (true_for_id, "", "images[1] has id True"),
    (huge_id, "", "images[1] has id 1000"),
    (negative_id, "", "images[1] has id -1"),
    (negative_height, "", "images[1] has height -3"),
    (text_for_id, "", "images[1] has id '2', expected a whole number"),
    (annotation_without_segments, "", "annotations[1] has no segments_info"),
    (segment_without_area, "", "segments_info[0] has no area"),
    (short_box, "", "segments_info[0] has bbox [1, 2], expected four numbers"),
    (segment_id_zero, "", "segments_info[0] has id 0; ids of segments are 1 to 16777215"),
    (segment_is_list, "", "segments_info[0] is [1, 2], expected an object"),
    (caption_without_text, "annotations/captions_train2017.json", "annotations[3] has no caption"),
]


@pytest.mark.parametrize(("spoil", "file", "cause"), PROBLEM_CAUSES)
def test_problem(tmp_path: Path, spoil: Callable[[MiniCoco], None], file: str, cause: str) -> None:
    coco = make_coco(tmp_path / "coco", 4)
    spoil(coco)
    coco.save()
    assert pack(coco.root, tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    file = file or "annotations/panoptic_train2017.json"
    assert [p for p in problems if p["file"] == file and cause in p["cause"]], problems
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PROBLEMS]
    assert pack(coco.root, tmp_path / "out", "--skip-bad") == 0
    samples = check_shards(tmp_path / "out").manifest.counts.samples
    both = {same_image_id, same_image_file, same_key}
    whole = {unlisted_image, unlisted_png, caption_without_text}
    assert samples == (2 if spoil in both else 4 if spoil in whole else 3)


def test_every_fault_of_a_sample_is_collected(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    segments = coco.annotation["annotations"][0]["segments_info"]
    segments[0]["category_id"] = 55
    segments[1]["bbox"] = None
    del coco.annotation["images"][0]["height"]
    truncated_image(coco)
    missing_png(coco)
    coco.save()
    assert pack(coco.root, tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / PROBLEMS).read_text())
    causes = [problem["cause"] for problem in problems["problems"]]
    assert len(causes) == 5
    assert problems["left_out"] == 2


@pytest.mark.parametrize(
    ("path", "archive"),
    [
        ("", "--root"),
        ("train2017", "train2017.zip"),
        ("annotations/panoptic_train2017.json", "panoptic_annotations_trainval2017.zip"),
        ("annotations/panoptic_train2017", "panoptic_train2017.zip"),
    ],
)
def test_missing_part_is_named_with_its_download(
    tmp_path: Path, path: str, archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    target = coco.root / path
    target.rename(tmp_path / "elsewhere")
    assert pack(coco.root, tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert str(target) in error
    assert archive in error
    assert "cocodataset.org" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("[]", "list 'categories'"),
        (json.dumps({"categories": CATEGORIES, "annotations": []}), "list 'images'"),
        (json.dumps({"categories": CATEGORIES, "images": []}), "list 'annotations'"),
        (json.dumps({"categories": [], "images": [], "annotations": []}), "no classes"),
        (json.dumps({"categories": [{"id": 1}], "images": [], "annotations": []}), "name"),
    ],
)
def test_unusable_annotation_file(tmp_path: Path, content: str, message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.json.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_coco(coco.root, "train2017")
    assert str(coco.json) in str(error.value)


def test_captions_are_optional_and_those_of_other_images_are_counted(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    coco.captions["annotations"] += [
        {"id": 90, "image_id": 77, "caption": "elsewhere"},
        {"id": 91, "image_id": 1, "caption": " "},
    ]
    coco.save()
    source = read_coco(coco.root, "train2017")
    assert [note.split(" captions")[0] for note in source.notes] == ["1", "1"]
    assert source.samples[0].captions == ("caption 0 of image 1", "caption 1 of image 1")
    (coco.root / "annotations" / "captions_train2017.json").unlink()
    assert read_coco(coco.root, "train2017").samples[0].captions == ()


def test_an_image_of_void_only_is_fine(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    image, annotation = coco.annotation["images"][0], coco.annotation["annotations"][0]
    annotation["segments_info"] = []
    colours(np.zeros((image["height"], image["width"]), dtype=np.int64)).save(
        coco.pngs / annotation["file_name"]
    )
    coco.save()
    assert pack(coco.root, tmp_path / "out") == 0


def test_keys_have_no_dots_and_no_folders(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    (coco.images / "cam.1").mkdir()
    (coco.images / "000000000001.jpg").rename(coco.images / "cam.1" / "frame.01.jpg")
    coco.annotation["images"][0]["file_name"] = "cam.1/frame.01.jpg"
    coco.save()
    source = read_coco(coco.root, "train2017")
    assert not source.problems
    assert source.samples[0].key == "cam_1_frame_01"
    assert pack(coco.root, tmp_path / "out") == 0


def official_categories() -> list[dict[str, object]]:
    categories = load_vocabulary("coco_panoptic").categories
    return [{"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)} for c in categories]


def test_vocabulary_is_the_packaged_one_only_for_exactly_its_categories(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    assert read_coco(coco.root, "train2017").vocabulary.names == ("square", "disc", "ground")
    annotation = coco.annotation["annotations"][0]
    for segment, category in zip(annotation["segments_info"], (1, 7, 200), strict=True):
        segment["category_id"] = category
    coco.annotation["categories"] = official_categories()
    coco.save()
    source = read_coco(coco.root, "train2017")
    assert source.vocabulary.name == "coco_panoptic"
    assert [segment.category for segment in source.samples[0].segments] == [0, 6, 132]
    own = read_coco(coco.root, "train2017", "annotation").vocabulary
    assert (own.name, own.names[-1]) == ("coco_train2017", "rug-merged")
    coco.annotation["categories"][0]["name"] = "robot"
    coco.save()
    assert read_coco(coco.root, "train2017").vocabulary.name == "coco_train2017"


def test_a_named_vocabulary_must_agree(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    with pytest.raises(DataError, match=r"category 1 is thing 'square', but .* has thing 'person'"):
        read_coco(coco.root, "train2017", "coco_panoptic")
    with pytest.raises(DataError, match="no vocabulary 'nonsense'"):
        read_coco(coco.root, "train2017", "nonsense")
    path = tmp_path / "mine.json"
    mine = [
        {"id": 5, "name": "more"},
        *({**category, "isthing": bool(category["isthing"])} for category in CATEGORIES),
    ]
    path.write_text(json.dumps({"categories": mine}))
    source = read_coco(coco.root, "train2017", str(path))
    assert [segment.category for segment in source.samples[0].segments] == [1, 2, 3]
    path.write_text(json.dumps({"categories": mine[:3]}))
    with pytest.raises(DataError, match=r"category 90 is stuff 'ground'.* has no such id"):
        read_coco(coco.root, "train2017", str(path))


# Categories


def listed(*changes: dict[str, object]) -> list[dict[str, object]]:
    return [{**category, **change} for category, change in zip(CATEGORIES, changes, strict=True)]


@pytest.mark.parametrize("value", [..., None, 2, "yes", "1", 1.0, [1]])
@pytest.mark.parametrize("vocabulary", ["auto", "annotation"])
def test_a_category_without_isthing_is_named(tmp_path: Path, value: object, vocabulary: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    ground = dict(CATEGORIES[2], isthing=value)
    coco.annotation["categories"] = [*CATEGORIES[:2], ground]
    if value is ...:
        del ground["isthing"]
    coco.save()
    with pytest.raises(DataError, match=r"panoptic_train2017\.json: category 'ground' has .*isthing"):
        read_coco(coco.root, "train2017", vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "2 categories have the id 7"),
        ({"id": True}, "has id True"),
        ({"name": " "}, "empty name"),
        ({"id": -7}, "'ground' has id -7, "),
    ],
)
def test_unusable_categories(tmp_path: Path, change: dict[str, object], message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = listed({}, {}, change)
    coco.save()
    with pytest.raises(DataError, match=message):
        read_coco(coco.root, "train2017")


def test_categories_of_one_name_are_told_apart_by_their_supercategory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = listed(
        {"name": "other", "supercategory": "furniture"}, {"name": "Other", "supercategory": "toy"}, {}
    )
    coco.save()
    assert pack(coco.root, tmp_path / "out") == 0
    assert "furniture other, toy Other" in capsys.readouterr().out
    vocabulary = check_shards(tmp_path / "out").manifest.vocabulary
    assert vocabulary.names == ("furniture other", "toy Other", "ground")
    assert [category.official for category in vocabulary.categories] == ["other", "Other", ""]


def test_categories_of_one_name_and_supercategory_get_names_from_a_file(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = listed({"name": "other"}, {"name": "other"}, {})
    coco.save()
    with pytest.raises(DataError, match=r"'other'.*--vocabulary FILE\.json"):
        read_coco(coco.root, "train2017")
    named = listed({"name": "box", "official": "other"}, {"name": "ball", "official": "other"}, {})
    (tmp_path / "names.json").write_text(json.dumps({"categories": named}))
    source = read_coco(coco.root, "train2017", str(tmp_path / "names.json"))
    assert source.vocabulary.names == ("box", "ball", "ground")


def beside(coco: MiniCoco, name: str, categories: object, **content: object) -> Path:
    """A file of objects or captions with an object of category 41 in image 1."""
    box = {"bbox": [10, 8, 20, 12], "area": 240, "segmentation": [[10, 8, 30, 8, 30, 20, 10, 20]]}
    one = {"id": 1, "image_id": 1, "category_id": 41, "iscrowd": 0, **box}
    images = coco.annotation["images"]
    data = {"images": images, "annotations": [one], "categories": categories, **content}
    path = coco.root / "annotations" / f"{name}_train2017.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(("name", "index"), [("Disc", 1), ("square", 0)])
def test_objects_are_matched_with_segments_by_the_names_of_categories(
    tmp_path: Path, name: str, index: int
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    beside(coco, "instances", [{"id": 1, "name": "unused"}, {"id": 41, "name": name}])
    source = read_coco(coco.root, "train2017")
    assert not source.problems
    assert [one.category for one in source.samples[0].instances or ()] == [index]


def test_objects_of_categories_of_one_name_are_matched_by_supercategory(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.annotation["categories"] = listed(
        {"name": "other", "supercategory": "furniture"}, {"name": "other", "supercategory": "toy"}, {}
    )
    coco.save()
    beside(coco, "instances", [{"id": 41, "name": "other", "supercategory": "toy"}])
    (sample,) = read_coco(coco.root, "train2017").samples
    assert [one.category for one in sample.instances or ()] == [1]
    beside(coco, "instances", [{"id": 41, "name": "other"}])
    (problem,) = read_coco(coco.root, "train2017").problems
    assert "'other', which panoptic_train2017.json has several times" in problem.cause


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 41, "name": "zebra"}], "category_id 41, 'zebra', which panoptic_train2017.json has no"),
        (
            [{"id": 41, "name": "ground"}],
            "category_id 41, 'ground', which panoptic_train2017.json has as stuff",
        ),
        ([{"id": 1, "name": "square"}], "category_id 41, which categories lacks"),
    ],
)
def test_objects_of_no_thing_are_problems(tmp_path: Path, categories: object, message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    beside(coco, "instances", categories)
    (problem,) = read_coco(coco.root, "train2017").problems
    assert problem.file == "annotations/instances_train2017.json"
    assert message in problem.cause


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (None, "categories"),
        ([{"id": 41, "name": "disc"}, {"id": 41, "name": "square"}], "2 categories have the id 41"),
        ([{"id": 41, "name": "disc"}, {"id": 42, "name": "Disc "}], "two categories have the name 'Disc'"),
        ([{"id": "41", "name": "disc"}], "category 'disc' has id '41'"),
    ],
)
def test_objects_need_a_category_list(tmp_path: Path, categories: object, message: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", categories)
    with pytest.raises(DataError, match=message) as error:
        read_coco(coco.root, "train2017")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["instances", "captions"])
def test_other_files_must_mean_the_same_images(tmp_path: Path, name: str) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    image = {"id": 1, "file_name": "000000000002.jpg", "height": 9, "width": 9}
    path = beside(coco, name, [{"id": 41, "name": "disc"}], images=[image])
    with pytest.raises(DataError, match=r"images\[0\] has id 1 .*000000000001\.jpg") as error:
        read_coco(coco.root, "train2017")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("images", "cause"),
    [
        ([], "no entry of images has id 2 (000000000002.jpg)"),
        ([{"id": 2}], "images[0] has no height"),
        (
            [{"id": 2, "file_name": IMAGE, "height": 128, "width": 192}],
            "images[0] has height and width [128, 192]",
        ),
    ],
)
def test_images_whose_objects_are_not_known_are_problems(
    tmp_path: Path, images: list[object], cause: str
) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    first = coco.annotation["images"][:1]
    beside(coco, "instances", [{"id": 41, "name": "disc"}], images=images + first)
    source = read_coco(coco.root, "train2017")
    assert [sample.image_id for sample in source.samples] == [1]
    assert {problem.sample for problem in source.problems} == {f"train2017/{IMAGE}"}
    assert {problem.file for problem in source.problems} == {"annotations/instances_train2017.json"}
    assert cause in [problem.cause[: len(cause)] for problem in source.problems]


def test_images_without_objects_have_none(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    beside(coco, "instances", [{"id": 41, "name": "disc"}])
    source = read_coco(coco.root, "train2017")
    assert [len(sample.instances or ()) for sample in source.samples] == [1, 0]
    assert not source.problems


def test_objects_need_a_list_of_images(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", [{"id": 41, "name": "disc"}], images=None)
    with pytest.raises(DataError, match="'images'") as error:
        read_coco(coco.root, "train2017")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("place", ["other", "other/more"])
def test_files_of_another_data_set_are_not_used_and_named(tmp_path: Path, place: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", [{"id": 41, "name": "disc"}])
    (coco.root / place / "annotations").mkdir(parents=True)
    path.rename(coco.root / place / "annotations" / path.name)
    source = read_coco(coco.root, "train2017")
    assert source.samples[0].instances is None
    assert any("annotations/instances_train2017.json" in note for note in source.notes)


def test_optional_files_may_be_in_another_root_or_archive(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", [{"id": 41, "name": "disc"}])
    (tmp_path / "more" / "annotations").mkdir(parents=True)
    moved = path.rename(tmp_path / "more" / "annotations" / path.name)
    roots = [coco.root, tmp_path / "more"]
    (sample,) = read_coco(roots, "train2017").samples
    with zipfile.ZipFile(coco.root / "annotations_trainval2017.zip", "w") as archive:
        archive.write(moved, f"annotations/{path.name}")
    assert read_coco(coco.root, "train2017").samples == (sample,)
    assert len(sample.instances or ()) == 1


@pytest.mark.parametrize(
    "segmentation",
    [
        [[200, 200, 300, 200, 300, 300]],
        [[10, 10, 20, 20, 30, 30]],
        {"size": [47, 59], "counts": [47 * 59]},
    ],
)
def test_objects_without_a_pixel_are_problems(tmp_path: Path, segmentation: object) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    Image.new("RGB", (59, 47)).save(coco.images / "000000000001.jpg")
    coco.annotation["images"][0] |= {"height": 47, "width": 59}
    path = beside(coco, "instances", [{"id": 41, "name": "disc"}])
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(data))
    (sample,) = read_coco_instances(coco.root, "train2017").samples
    content, faults = examine_instances(sample)
    assert content == {"instances.json": b"[]"}
    assert "annotations[0] of instances_train2017.json" in faults[0]


def test_objects_of_images_of_no_split_are_counted(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    path = beside(coco, "instances", [{"id": 41, "name": "disc"}])
    path.write_text(path.read_text().replace('"image_id": 1', '"image_id": 5'))
    (note,) = read_coco(coco.root, "train2017").notes
    assert note.startswith("1 objects")


# Files


def test_the_option_that_leads_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for option in ("images", "annotations"):
        with pytest.raises(DataError, match=f"^--{option} is no path below its folder: '../a'"):
            read_coco_instances(tmp_path, "a", **{option: "../a"})


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_marks_of_windows_editors_are_read(tmp_path: Path, mark: str) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    before = read_coco(coco.root, "train2017")
    for path in (coco.root / "annotations").glob("*.json"):
        path.write_text(path.read_text(), encoding=mark)
    assert read_coco(coco.root, "train2017").samples == before.samples


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.json.write_bytes(coco.json.read_bytes().replace(b"disc", b"d\xefsc"))
    with pytest.raises(DataError, match=r"panoptic_train2017\.json.*UTF-8"):
        read_coco(coco.root, "train2017")


def test_deep_nesting_is_named(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    coco.json.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"panoptic_train2017\.json"):
        read_coco(coco.root, "train2017")


@pytest.mark.parametrize(
    ("kind", "options", "suffix"),
    [("PNG", {}, "png"), ("WEBP", {"lossless": True}, "png"), ("TIFF", {}, "png"), ("BMP", {}, "png")],
)
def test_images_of_other_formats_are_packed_and_read_back(
    tmp_path: Path, kind: str, options: dict[str, object], suffix: str
) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    path = coco.images / IMAGE
    pixels = np.asarray(Image.open(path))
    path.unlink()
    path = path.with_suffix(f".{kind.lower()}")
    Image.fromarray(pixels).save(path, **options)
    coco.annotation["images"][1]["file_name"] = path.name
    coco.save()
    assert pack(coco.root, tmp_path / "out") == 0
    (url,) = check_shards(tmp_path / "out").urls
    first, second = read_shard(url, [0, 1])
    assert isinstance(first, RawSample)
    assert isinstance(second, RawSample)
    assert (first.image, second.image) == ("jpg", suffix)
    assert (second.members[suffix] == path.read_bytes()) == (kind == "PNG")
    np.testing.assert_array_equal(np.asarray(decode(second).image), pixels)


NAMES = [
    "münchen",
    "数据",
    "a b",
    "x*y",
    "[x]",
    "a[1]b",
    "50%",
    "a#b",
    "{}",
    "{0..2}",
    "a::b",
    "v1.5",
    "a?b",
    "1",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", [False, True])
def test_names_of_folders_and_splits_are_data(
    tmp_path: Path, name: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = make_coco(tmp_path / name / "coco", 1, split=name)
    if relative:
        monkeypatch.chdir(tmp_path)
    above = Path() if relative else tmp_path
    assert pack(above / name / "coco", above / name, split=name) == 0
    shards = check_shards(above / name)
    assert shards.manifest.source.split == name
    (sample,) = read_shard(shards.urls[0], [0])
    assert isinstance(sample, RawSample)
    assert sample.members["jpg"] == (coco.images / "000000000001.jpg").read_bytes()


@pytest.mark.parametrize("split", ["", "..", "../train2017", "/tmp", "a\0b"])
def test_a_split_is_below_its_root(tmp_path: Path, split: str) -> None:
    make_coco(tmp_path / "coco", 1)
    with pytest.raises(DataError, match=r"--split.* no path below its folder"):
        read_coco(tmp_path / "coco", split)


@pytest.mark.parametrize("name", ["a/b.jpg", "a\\b.jpg", "a\nb.jpg", "a.b.jpg", "a\x7fb"])
def test_keys_are_plain_file_names(name: str) -> None:
    assert key_of(name) == "a_b"
