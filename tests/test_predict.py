"""Images segmented in one's own words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_members import members
from trained import ROOT, train_a_little

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.images import decode_ids, decode_rgb, read_image
from odise_pl.data.records import DataError
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.predict import load_segmenter, main
from odise_pl.vocabulary import load_vocabulary

CONF = ROOT / "conf"
EVERYTHING = "model.inference.overlap_threshold=0.0"  # what little it has learned
NAMES = ["ball", "wooden box", "sky:stuff", "field,meadow:stuff", "zebra"]


@pytest.fixture(scope="module")
def checkpoint(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that finds something."""
    return train_a_little(scene_shards, tmp_path_factory.mktemp("trained"), 40)


@pytest.fixture(scope="module")
def photos(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    (shard, *_) = sorted(scene_shards.glob("*.tar"))
    images = {name: data for name, data in members(shard).items() if name.endswith(".jpg")}
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def test_words_of_ones_own_give_what_evaluation_gives(
    checkpoint: Path, scene_shards: Path, photos: list[Path]
) -> None:
    segmenter = load_segmenter(checkpoint, [EVERYTHING], CONF)
    vocabulary = load_vocabulary(NAMES)
    predictor = NetworkPredictor(segmenter.model, vocabulary, segmenter.training)
    data = PanopticDataModule(
        val=str(scene_shards), num_workers=0, eval_short_side=64, eval_long_side=96, eval_batch_size=1
    )
    with pytest.raises(TypeError, match=r"Image\.fromarray"):
        segmenter.segment(np.zeros((8, 8, 3), np.uint8), NAMES)  # type: ignore[arg-type]
    found = 0
    for batch in list(data.eval_loader("val"))[:3]:
        (expected,) = predictor(batch)
        (photo,) = (path for path in photos if path.stem == batch.keys[0])
        prediction = segmenter.segment(read_image(photo), NAMES)
        assert torch.equal(prediction.panoptic.ids, expected.panoptic.ids)
        assert torch.equal(prediction.semantic, expected.semantic)
        assert prediction.panoptic.segments == expected.panoptic.segments
        found += len(expected.panoptic.segments)
    assert found, "a network that finds nothing would agree with anything"


def test_the_command_writes_what_it_finds(
    checkpoint: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / "wide.png"
    Image.open(photos[0]).resize((150, 70)).save(wide)
    arguments = [
        str(checkpoint),
        str(photos[0]),
        str(wide),
        "--names",
        str(NAMES),
        "--conf",
        str(CONF),
        "--set",
        EVERYTHING,
    ]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for path in (photos[0], wide):
        content = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
        ids = decode_ids((tmp_path / "out" / content["file_name"]).read_bytes())
        picture = Image.open(tmp_path / "out" / f"{path.stem}_segments.png")
        assert picture.size == Image.open(path).size == ids.shape[::-1]
        assert {s["id"] for s in content["segments"]} == set(np.unique(ids)) - {0}
        for segment in content["segments"]:
            assert segment["area"] == (ids == segment["id"]).sum()
            assert segment["name"] in {"ball", "wooden box", "sky", "field", "zebra"}
            assert f"{segment['name']} ({segment['score']:.2f})" in shown
        assert content["segments"], "a network that finds nothing shows nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ckpt": "nothing.ckpt"}, "nothing.ckpt is not there"),
        ({"image": "nothing.jpg"}, "nothing.jpg cannot be read as an image"),
        ({"image": __file__}, "test_predict.py cannot be read as an image"),
        ({"--names": "ball,,box"}, "has an empty name"),
        ({"--names": "nonsense.txt"}, "no vocabulary 'nonsense.txt'"),
        ({"--out": __file__}, "test_predict.py is a file, not a folder"),
        ({"--conf": "nowhere"}, "--conf nowhere is not the conf folder"),
        ({"--set": "model=nonsense"}, "model=nonsense: "),
        ({"--set": "data.eval_short_side=-3"}, "data.eval_short_side=-3"),
        ({"--set": "captioner=blip"}, "add captioner.on_the_fly=true"),
        ({"--set": "classifier.mode=nonsense"}, "classifier.mode=nonsense: choose one of"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    checkpoint: Path,
    photos: list[Path],
    tmp_path: Path,
    change: dict[str, str],
    message: str,
) -> None:
    options = {"--names": "ball,box", "--out": str(tmp_path / "out"), "--conf": str(CONF), **change}
    ckpt, image = options.pop("ckpt", str(checkpoint)), options.pop("image", str(photos[0]))
    flags = [text for pair in options.items() for text in pair]
    with pytest.raises(SystemExit) as ended:
        main([ckpt, image, *flags])
    assert str(ended.value).startswith("error: ")
    assert message in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_the_same_command_gives_the_same_with_random_frozen_weights(
    checkpoint: Path, photos: list[Path]
) -> None:
    image = read_image(photos[0])
    first, second = (
        load_segmenter(checkpoint, [EVERYTHING, *more], CONF).segment(image, NAMES)
        for more in ([], ["run=x"])
    )
    assert torch.equal(first.semantic, second.semantic)
    assert first.panoptic.segments == second.panoptic.segments


def test_photos_are_upright_and_keep_their_brightness(tmp_path: Path) -> None:
    deep = np.full((4, 6), 128 * 257, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.unique(np.asarray(read_image(tmp_path / "deep.png"))).tolist() == [128]
    lying = Image.new("RGB", (6, 4))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.jpg", exif=exif)
    assert read_image(tmp_path / "lying.jpg").size == (4, 6)


def test_python_turns_a_picture_as_the_command_line_does(
    checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    image = Image.open(photos[0]).crop((0, 0, 60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    segmenter = load_segmenter(checkpoint, [EVERYTHING], CONF)
    one = segmenter.segment(Image.open(tmp_path / "phone.png"), NAMES)
    other = segmenter.segment(read_image(tmp_path / "phone.png"), NAMES)
    assert one.panoptic.ids.shape == (60, 40)
    assert torch.equal(one.panoptic.ids, other.panoptic.ids)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    """Half of it opaque black; of the palette, grey and RGB files one value is declared transparent."""
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.paste((90, 90, 90, 0), (2, 0, 4, 2))
    path, options = tmp_path / "cut_out.png", {}
    if mode in ("L", "RGB"):
        options["transparency"] = 90 if mode == "L" else (90, 90, 90)
    if mode == "P":
        image = Image.fromarray(np.repeat(np.array([[0, 0, 1, 1]], np.uint8), 2, axis=0), "P")
        image.putpalette([0, 0, 0, 90, 90, 90])
        options["transparency"] = 1
    image.convert(mode).save(path, **options)
    pixels = np.asarray(read_image(path))
    assert pixels.shape == (2, 4, 3)
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 2:] == 255).all()
    assert np.array_equal(np.asarray(decode_rgb(path.read_bytes())), pixels), "the same from a shard"


def test_what_is_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 128)).save(tmp_path / "half.png")
    assert np.asarray(read_image(tmp_path / "half.png"))[0, 0] == pytest.approx([127, 177, 227], abs=1)


def test_floats_are_not_taken_for_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "half.tiff")
    with pytest.raises(DataError, match=r"half\.tiff cannot be read as an image: holds floats of an unknown"):
        read_image(tmp_path / "half.tiff")


def test_two_images_of_one_name_are_not_written_over_each_other(checkpoint: Path, photos: list[Path]) -> None:
    with pytest.raises(SystemExit, match="error: two images have one name"):
        main([str(checkpoint), str(photos[0]), str(photos[0]), "--names", "ball"])
