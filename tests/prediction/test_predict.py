"""Segmentation of images by free vocabulary."""

from __future__ import annotations

import io
import json
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shard_members import members
from trained import train_a_little
from typer.testing import CliRunner

from odise_pl.checkpoints.io import export_official
from odise_pl.cli import app
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.images import read_image
from odise_pl.data.label_maps import decode_ids
from odise_pl.errors import UserError
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.models.odise import Odise, TextClasses
from odise_pl.prediction.predict import predict
from odise_pl.prediction.segmenter import Segmenter, load_segmenter
from odise_pl.structures import PanopticSegmentation, Segment
from odise_pl.vocabulary import Vocabulary, load_vocabulary

EVERYTHING = {"model.inference.overlap_threshold": 0.0}  # keep all segments
NAMES = ["ball", "wooden box", "sky:stuff", "field,meadow:stuff", "zebra"]


@pytest.fixture(scope="module")
def checkpoint(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a network that finds some segments."""
    return train_a_little(scene_shards, tmp_path_factory.mktemp("trained"), 40)


@pytest.fixture(scope="module")
def photos(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    (shard, *_) = sorted(scene_shards.glob("*.tar"))
    images = {name: data for name, data in members(shard).items() if name.endswith(".jpg")}
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def test_segmenter_equals_evaluation(checkpoint: Path, scene_shards: Path, photos: list[Path]) -> None:
    segmenter = load_segmenter(checkpoint, EVERYTHING)
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
    assert found, "the network finds something"


def test_command_writes_and_prints_segments(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.open(photos[0]).resize((150, 70)).save(wide)
    options = ["--words", str(NAMES), "--set", "model.inference.overlap_threshold=0.0"]
    done = CliRunner().invoke(
        app, ["predict", str(checkpoint), str(photos[0]), str(wide), *options, "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    shown = done.output
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
        assert content["segments"], "the network finds something"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"checkpoint": "nothing.ckpt"}, "nothing.ckpt"),
        ({"pictures": "nothing.jpg", "checkpoint": "nothing.ckpt"}, "nothing.jpg"),
        ({"pictures": str(Path(__file__).parent)}, "no picture"),
        ({"words": "ball,,box"}, "vocabulary 'custom'"),
        ({"words": "nonsense.txt"}, "nonsense.txt"),
        ({"out": __file__}, "--out"),
        ({"setting": "model=odise_label"}, "model: not a setting"),
        ({"setting": "trainer.devices=2"}, "trainer.devices: not a setting"),
        ({"setting": "classifier.mode=nonsense"}, "classifier.mode=nonsense"),
        ({"setting": "captioner.on_the_fly=false"}, "captioner.on_the_fly=true"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_invalid_arguments_are_named(
    checkpoint: Path, photos: list[Path], tmp_path: Path, change: dict[str, str], word: str
) -> None:
    given = {"checkpoint": str(checkpoint), "pictures": str(photos[0]), "words": "ball,box"} | change
    key, _, value = given.pop("setting", "").partition("=")
    settings = {key: value != "false" and value} if key else {}
    pictures, out = [given.pop("pictures")], Path(given.pop("out", str(tmp_path / "out")))
    with pytest.raises(UserError, match=re.escape(word)):
        predict(Path(given.pop("checkpoint")), pictures, given.pop("words"), out, settings, **given)
    assert not (tmp_path / "out").exists()


def test_random_frozen_weights_are_reproducible(checkpoint: Path, photos: list[Path]) -> None:
    image = read_image(photos[0])
    first, second = (load_segmenter(checkpoint, EVERYTHING).segment(image, NAMES) for _ in range(2))
    assert torch.equal(first.semantic, second.semantic)
    assert first.panoptic.segments == second.panoptic.segments


def test_official_release_selects_the_published_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_official(checkpoint, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"sd-v1-3\.ckpt"):  # its weights, which are missing here
        load_segmenter(tmp_path / "official.pth")


def test_segmenter_rotates_by_exif_as_the_command_does(
    checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    image = Image.open(photos[0]).crop((0, 0, 60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    segmenter = load_segmenter(checkpoint, EVERYTHING)
    one = segmenter.segment(Image.open(tmp_path / "phone.png"), NAMES)
    other = segmenter.segment(read_image(tmp_path / "phone.png"), NAMES)
    assert one.panoptic.ids.shape == (60, 40)
    assert torch.equal(one.panoptic.ids, other.panoptic.ids)


def count_embedded_names(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of names of each embedding."""
    counts: list[int] = []
    encode = type(segmenter.model).encode_classes

    def counting(model: Odise, labels: Sequence[Sequence[str]], *rest: str) -> TextClasses:
        counts.append(len(labels))
        return encode(model, labels, *rest)

    monkeypatch.setattr(type(segmenter.model), "encode_classes", counting)
    return counts


def test_name_embeddings_are_cached(
    checkpoint: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = load_segmenter(checkpoint)
    image, counts = read_image(photos[0]), count_embedded_names(segmenter, monkeypatch)
    for _ in range(3):
        segmenter.segment(image, NAMES)
    assert counts == [5, 5], "for the mask embeddings and for masked CLIP"
    first = segmenter.segment(image, ["ball", "box"])
    again = segmenter.segment(image, NAMES)
    assert counts == [5, 5, 2, 2, 5, 5]
    assert again.semantic.shape == first.semantic.shape
    assert int(first.semantic.max()) < 2


class Fake:
    """A fast stand-in for a network: everything is a ball if the score is high."""

    def __init__(self, score: float = 0.75) -> None:
        self.score, self.most = score, 0
        self._seen: list[weakref.ref[Image.Image]] = []

    def segment(self, image: Image.Image, vocabulary: Vocabulary) -> SimpleNamespace:
        self._seen.append(weakref.ref(image))
        self.most = max(self.most, sum(seen() is not None for seen in self._seen))
        found = self.score > 0.5
        ids = torch.full((image.height, image.width), int(found), dtype=torch.int32)
        segments = (Segment(1, 0, True, score=self.score),) if found else ()
        return SimpleNamespace(panoptic=PanopticSegmentation(ids, segments), best=(0, self.score))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    segmenter = Fake()
    monkeypatch.setattr("odise_pl.prediction.predict.load_segmenter", lambda *_: segmenter)
    return segmenter


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 6)).save(folder / name)


def predicted(out: Path, *images: Path | str) -> list[str]:
    """The messages of skipped pictures."""
    return predict(Path("net.ckpt"), list(map(str, images)), "ball", out)


def results(out: Path) -> set[str]:
    """The images with all three results; there are no other files."""
    found = {str(path.relative_to(out).with_suffix("")) for path in out.rglob("*.json")}
    expected = {f"{name}{end}" for name in found for end in (".json", "_ids.png", "_segments.png")}
    assert expected == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return found


def test_folder_structure_is_kept_and_hidden_files_skipped(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = tmp_path / "photos [2024]", tmp_path / "out"
    pictures(folder, "b.jpg", "a.PNG", "deep/a.jpg", "deep/er/a.tif", ".hidden.jpg", ".cache/c.jpg")
    pictures(folder, "._b.jpg", "__MACOSX/b.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "linked.jpg").symlink_to(folder / "b.jpg")
    assert predicted(out, folder) == []
    assert results(out) == {"a", "b", "linked", "deep/a", "deep/er/a"}
    shown = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    wanted = ["a.PNG", "b.jpg", "linked.jpg", "deep/a.jpg", "deep/er/a.tif"]
    assert shown[:-1] == [str(folder / name) for name in wanted]
    assert ".txt" in caplog.text


def test_results_beside_images_are_skipped(fake: Fake, tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b_ids.jpg")
    for _ in range(2):
        assert predicted(tmp_path, tmp_path) == []
    assert {path.name for path in tmp_path.glob("*.json")} == {"a.json", "b_ids.json"}


def test_patterns_match_names_with_brackets(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "set [1]"
    pictures(folder, "photo[1].jpg", "photo1.jpg", "photo2.jpg", "deep/photo3.jpg", ".photo4.jpg")
    for number, (pattern, expected) in enumerate(
        [
            ("photo[1].jpg", {"photo[1]"}),
            ("photo[12].jpg", {"photo1", "photo2"}),
            ("*.jpg", {"photo1", "photo2", "photo[1]"}),
            ("**/*3.jpg", {"photo3"}),
        ]
    ):
        assert predicted(tmp_path / str(number), folder / pattern) == []
        assert results(tmp_path / str(number)) == expected
    with pytest.raises(UserError, match=r"photo\[89\].jpg: no such file"):
        predicted(tmp_path / "none", folder / "photo[89].jpg")


def test_images_of_the_same_name_are_refused(fake: Fake, tmp_path: Path) -> None:
    pictures(tmp_path, "a/x.jpg", "b/x.jpg")
    with pytest.raises(UserError, match=r"a/x\.jpg and .*b/x\.jpg"):
        predicted(tmp_path / "out", tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg")
    assert not (tmp_path / "out").exists()


def test_suffixes_distinguish_images_of_the_same_name(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    pictures(folder, "x.jpg", "x.png", "y.jpg")
    assert predicted(tmp_path / "out", folder, folder / "y.jpg", folder / "*.jpg") == []
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"x.jpg.json", "x.png.json", "y.json"}


def test_names_that_the_terminal_lacks_are_escaped(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, "狗.jpg", "z.jpg")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert predicted(tmp_path / "out", tmp_path) == []
    assert results(tmp_path / "out") == {"狗", "z"}


def test_unreadable_images_are_skipped(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    pictures(tmp_path, "a.jpg", "z.jpg")
    Image.new("RGB", (50, 30)).save(tmp_path / "large.png")  # more than the limit: Pillow warns
    Image.new("RGB", (100, 30)).save(tmp_path / "bomb.png")  # more than twice the limit: it refuses
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    errors = predicted(tmp_path / "out", tmp_path)
    assert results(tmp_path / "out") == {"a", "large", "z"}
    assert len(errors) == 2
    assert "bomb.png" in errors[0]
    assert "damaged.jpg" in errors[1]
    capsys.readouterr()
    command = ["predict", __file__, str(tmp_path / "damaged.jpg"), "--words", "ball"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "written" not in done.stdout


def test_only_one_image_is_in_memory(fake: Fake, tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{number}.png" for number in range(5)))
    assert predicted(tmp_path / "out", tmp_path) == []
    assert fake.most == 1


def test_best_score_is_shown_without_segments(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, "photo.jpg")
    fake.score = 0.034
    assert predicted(tmp_path / "out", tmp_path / "photo.jpg") == []
    assert "photo.jpg: no segment (best score 0.03: ball); " in capsys.readouterr().out
    assert results(tmp_path / "out") == {"photo"}


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_command_leaves_no_partial_files(
    stopped: BaseException, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing the map of the second image fails."""
    pictures(tmp_path, "a.jpg", "b.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_ids.png").write_bytes(b"earlier")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.name == "b_ids.png":
            raise stopped
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((UserError, KeyboardInterrupt), match=r"--out .*No space left|"):
        predicted(out, tmp_path)
    left = {path.name for path in out.iterdir()}
    assert left == {"a.json", "a_ids.png", "a_segments.png", "b_ids.png", "b_segments.png"}
    assert (out / "b_ids.png").read_bytes() == b"earlier"
    assert Image.open(out / "b_segments.png").size == (9, 6)
