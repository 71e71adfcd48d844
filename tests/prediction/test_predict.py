"""Segmentation of images by free vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shard_members import members
from typer.testing import CliRunner

from odise_pl.checkpoints.weights import export_official
from odise_pl.cli import app
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.images import read_image
from odise_pl.data.label_maps import decode_ids
from odise_pl.errors import UserError
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.models.odise import Odise
from odise_pl.prediction.predict import predict
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import PanopticSegmentation, Segment
from odise_pl.vocabulary import Vocabulary, load_vocabulary

EVERYTHING = {"model.inference.overlap_threshold": 0.0}  # keep all segments
NAMES = ["ball", "wooden box", "sky:stuff", "field,meadow:stuff", "zebra"]


@pytest.fixture(scope="module")
def network(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a network that finds some segments, by noise on its head."""
    content, generator = torch.load(checkpoint, weights_only=False), torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if name.startswith(("model.mask_decoder.", "model.text_projection.")):
            value += 0.1 * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("network") / "net.ckpt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def photos(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    (shard, *_) = sorted(scene_shards.glob("*.tar"))
    images = {name: data for name, data in members(shard).items() if name.endswith(".jpg")}
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def segmenter(network: Path) -> Segmenter:
    return Segmenter.from_pretrained(network, EVERYTHING)


def test_segmenter_equals_evaluation(segmenter: Segmenter, scene_shards: Path, photos: list[Path]) -> None:
    vocabulary = load_vocabulary(NAMES)
    predictor = NetworkPredictor(segmenter.model, vocabulary, segmenter.training)
    data = PanopticDataModule(
        val=str(scene_shards), num_workers=0, eval_short_side=64, eval_long_side=96, eval_batch_size=1
    )
    found = 0
    for batch in list(data.eval_loader("val"))[:3]:
        (expected,) = predictor(batch)
        (photo,) = (path for path in photos if path.stem == batch.keys[0])
        prediction = segmenter(photo, NAMES).prediction
        assert torch.equal(prediction.panoptic.ids, expected.panoptic.ids)
        assert torch.equal(prediction.semantic, expected.semantic)
        assert prediction.panoptic.segments == expected.panoptic.segments
        found += len(expected.panoptic.segments)
    assert found, "the network finds something"


def test_images_of_all_kinds_give_one_result(segmenter: Segmenter, photos: list[Path]) -> None:
    image = read_image(photos[0])
    found = [segmenter(kind, NAMES) for kind in (photos[0], str(photos[0]), image, np.asarray(image))]
    assert found[0].segments
    for result in found:
        assert result.segments == found[0].segments
        assert np.array_equal(result.ids, found[0].ids)
        assert result.plot().tobytes() == found[0].plot().tobytes()
    for segment in found[0].segments:
        rows, columns = np.nonzero(found[0].ids == segment.id)
        x, y, width, height = segment.box
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert segment.area == len(rows)
        assert segment.isthing == (segment.name not in ("sky", "field"))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), torch.zeros(3, 8, 8), None]
)
def test_other_images_are_refused(segmenter: Segmenter, image: Any) -> None:
    with pytest.raises(TypeError, match=r"uint8 array \[H, W, 3\]"):
        segmenter(image, NAMES)


def test_run_folder_means_its_newest_checkpoint(segmenter: Segmenter, network: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoints"):
        Segmenter.from_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step_{step}.ckpt").symlink_to(network)
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("step_2.ckpt")
    found = Segmenter.from_pretrained(str(tmp_path)).model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in segmenter.model.state_dict().items())


def test_command_writes_and_prints_segments(network: Path, photos: list[Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.open(photos[0]).resize((150, 70)).save(wide)
    options = ["--words", str(NAMES), "--set", "model.inference.overlap_threshold=0.0"]
    done = CliRunner().invoke(
        app, ["predict", str(network), str(photos[0]), str(wide), *options, "--out", str(tmp_path / "out")]
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
        ({"out": __file__}, "--out"),
        ({"setting": "model=odise_label"}, "model: not a setting"),
        ({"setting": "classifier.mode=nonsense"}, "classifier.mode=nonsense"),
        ({"setting": "captioner.on_the_fly=false"}, "captioner.on_the_fly=true"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_invalid_arguments_are_named(
    network: Path, photos: list[Path], tmp_path: Path, change: dict[str, str], word: str
) -> None:
    given = {"checkpoint": str(network), "pictures": str(photos[0]), "words": "ball,box"} | change
    key, _, value = given.pop("setting", "").partition("=")
    settings = {key: value != "false" and value} if key else {}
    pictures, out = [given.pop("pictures")], Path(given.pop("out", str(tmp_path / "out")))
    with pytest.raises(UserError, match=re.escape(word)):
        predict(Path(given.pop("checkpoint")), pictures, given.pop("words"), out, settings, **given)
    assert not (tmp_path / "out").exists()


def test_official_release_selects_the_published_model(network: Path, tmp_path: Path) -> None:
    export_official(network, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"sd-v1-3\.ckpt"):  # its weights, which are missing here
        Segmenter.from_pretrained(tmp_path / "official.pth")


def test_segmenter_rotates_by_exif_as_the_command_does(
    segmenter: Segmenter, network: Path, photos: list[Path], tmp_path: Path
) -> None:
    """Random frozen weights are those of the other segmenter."""
    image = Image.open(photos[0]).crop((0, 0, 60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    one = segmenter(Image.open(tmp_path / "phone.png"), NAMES)
    other = Segmenter.from_pretrained(network, EVERYTHING)(tmp_path / "phone.png", NAMES)
    assert one.ids.shape == (60, 40)
    assert np.array_equal(one.ids, other.ids)
    assert one.segments == other.segments


def test_name_embeddings_are_cached(
    network: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, image, counts = Segmenter.from_pretrained(network), read_image(photos[0]), list[int]()
    encode = Odise.encode_classes
    monkeypatch.setattr(
        Odise, "encode_classes", lambda model, x, prompt: counts.append(len(x)) or encode(model, x, prompt)
    )
    for names in (NAMES, NAMES, ["ball", "box"], NAMES):
        assert int(segmenter(image, names).prediction.semantic.max()) < len(names)
    assert counts == [5, 5, 2, 2, 5, 5], "for the mask embeddings and for masked CLIP"


class Fake:
    """A fast stand-in for a network: everything is a ball if the score is high."""

    def __init__(self, score: float = 0.75) -> None:
        self.score = score

    def __call__(self, path: Path, vocabulary: Vocabulary) -> Segmentation:
        image, found = read_image(path), self.score > 0.5
        ids = torch.full((image.height, image.width), int(found), dtype=torch.int32)
        segments = (Segment(1, 0, True, score=self.score),) if found else ()
        prediction: Any = SimpleNamespace(panoptic=PanopticSegmentation(ids, segments), best=(0, self.score))
        return Segmentation(image, vocabulary, prediction)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    segmenter = Fake()
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_: segmenter)
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
    pictures(folder, "b.jpg", "a.PNG", "deep/a.jpg", "deep/er/a.tif", ".hidden.jpg", ".cache/c.jpg",
             "__MACOSX/b.jpg")  # fmt: skip
    (folder / "notes.txt").write_text("no picture")
    (folder / "linked.jpg").symlink_to(folder / "b.jpg")
    assert predicted(out, folder) == []
    assert results(out) == {"a", "b", "linked", "deep/a", "deep/er/a"}
    shown = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    wanted = ["a.PNG", "b.jpg", "deep/a.jpg", "deep/er/a.tif", "linked.jpg"]
    assert shown[:-1] == [str(folder / name) for name in wanted]
    assert ".txt" in caplog.text


def test_results_beside_images_are_skipped(fake: Fake, tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b_ids.jpg")
    for _ in range(2):
        assert predicted(tmp_path, tmp_path) == []
    assert {path.name for path in tmp_path.glob("*.json")} == {"a.json", "b_ids.json"}


def test_images_of_the_same_name_are_refused(fake: Fake, tmp_path: Path) -> None:
    pictures(tmp_path, "a/x.jpg", "b/x.jpg", "b/x.png")
    a, b = tmp_path / "a" / "x.jpg", tmp_path / "b"
    for images in ((a, b / "x.jpg"), (b,)):
        with pytest.raises(UserError, match=rf"{images[0]}.* and .*b/x\.\w+"):
            predicted(tmp_path / "out", *images)
    assert not (tmp_path / "out").exists()


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


def test_best_score_is_shown_without_segments(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, "photo.jpg")
    fake.score = 0.034
    assert predicted(tmp_path / "out", tmp_path / "photo.jpg") == []
    assert "photo.jpg: no segment (best score 0.03: ball); " in capsys.readouterr().out
    assert results(tmp_path / "out") == {"photo"}


def test_full_disk_leaves_no_partial_files(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing the map of the second image fails."""
    pictures(tmp_path, "a.jpg", "b.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_ids.png").write_bytes(b"earlier")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.name == "b_ids.png":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UserError, match=r"--out .*No space left"):
        predicted(out, tmp_path)
    left = {path.name for path in out.iterdir()}
    assert left == {"a.json", "a_ids.png", "a_segments.png", "b_ids.png", "b_segments.png"}
    assert (out / "b_ids.png").read_bytes() == b"earlier"
    assert Image.open(out / "b_segments.png").size == (9, 6)
