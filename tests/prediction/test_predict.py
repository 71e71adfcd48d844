"""``odise predict``."""

from __future__ import annotations

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.label_maps import decode_ids
from odise_pl.errors import UserError
from odise_pl.models.inference import InferenceSettings
from odise_pl.prediction import predict as predict_module
from odise_pl.prediction.predict import predict
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import PanopticSegmentation, Segment
from odise_pl.vocabulary import Vocabulary

EVERYTHING = {"model.inference.overlap_threshold": 0.0}  # keep all segments
NAMES = ["ball", "wooden box", "sky:stuff", "field,meadow:stuff", "zebra"]


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
        ({"pictures": f"{Path(__file__).parent}/*.jpg"}, "prediction/*.jpg: no picture"),
        ({"checkpoint": __file__}, "test_predict.py"),
        ({"words": ""}, "--words: "),
        ({"words": "toy_vocab"}, "--words: no vocabulary 'toy_vocab'"),
        ({"other": "nothing.txt"}, "--other: "),
        ({"other": "cat,ball"}, "--other: "),
        ({"out": __file__}, "--out"),
        ({"setting": "model=odise_label"}, "model: not a setting"),
        ({"setting": "data.eval_shrt_side=5"}, "data.eval_shrt_side: not a setting"),
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


class Fake:
    """A fast stand-in for a network: everything is a ball, or background, if the score is high."""

    def __init__(self, score: float = 0.75) -> None:
        self.score, self.calls = score, list[list[int]]()
        self.model = SimpleNamespace(inference=InferenceSettings())

    def __call__(
        self, images: list[Image.Image], vocabulary: Vocabulary, other: Vocabulary | None
    ) -> list[Segmentation]:
        self.calls.append([image.width for image in images])
        return [self.find(image, vocabulary, other) for image in images]

    def find(self, image: Image.Image, vocabulary: Vocabulary, other: Vocabulary | None) -> Segmentation:
        found, label = self.score > 0.5, len(vocabulary) if other else 0
        ids = torch.full((image.height, image.width), int(found), dtype=torch.int32)
        segments = (Segment(1, label, True, score=self.score),) if found else ()
        prediction: Any = SimpleNamespace(
            panoptic=PanopticSegmentation(ids, segments), best=(label, self.score)
        )
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


def predicted(out: Path, *images: Path | str, **options: Any) -> list[str]:
    """The messages of skipped pictures."""
    return predict(Path("net.ckpt"), list(map(str, images)), "ball", out, **options)


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


def test_patterns_keep_the_folders_that_they_match(fake: Fake, tmp_path: Path) -> None:
    root = tmp_path / "photos [2024]"
    pictures(
        root, "x.jpg", "day1/a.jpg", "day1/b.png", "day2/a.jpg", "day2/deep/c.jpg", "night/a.jpg", ".h/a.jpg"
    )
    (root / "day1" / "notes.txt").write_text("no picture")
    (root / "day3").symlink_to(root / "night")
    for number, (pattern, expected) in enumerate(
        {
            "photos*/day?/*.jpg": ["day1/a", "day2/a", "day3/a"],
            "photos*/day?/*": ["day1/a", "day1/b", "day2/a", "day2/deep/c", "day3/a"],
            "photos*/day[12]": ["day1/a", "day1/b", "day2/a", "day2/deep/c"],
            "*/**/*.jpg": ["x", "day1/a", "day2/a", "day2/deep/c", "night/a"],
        }.items()
    ):
        out = tmp_path / str(number)
        assert predicted(out, tmp_path / pattern) == []
        assert results(out) == {f"{root.name}/{name}" for name in expected}, pattern


def test_batches_hold_readable_pictures(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, "a.jpg", "c.jpg", "d.jpg", "e.jpg")
    (tmp_path / "b.jpg").write_text("text")
    (problem,) = predicted(tmp_path / "out", tmp_path, batch=3)
    assert "b.jpg cannot be read as an image" in problem
    assert results(tmp_path / "out") == {"a", "c", "d", "e"}
    assert fake.calls == [[8, 9, 10], [11]]
    monkeypatch.setattr(fake, "find", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(UserError, match="--batch 2"):
        predicted(tmp_path / "out", tmp_path, batch=2)


def test_page_links_to_results_with_names_escaped(fake: Fake, tmp_path: Path) -> None:
    names = ['100% #1 "q" <b>.jpg', "a&b/c?d.jpg", "javascript:x.jpg"]
    folder, out = tmp_path / "photos", tmp_path / "out"
    pictures(folder, *names)
    (folder / "bad<i>.jpg").write_text("text")
    predict(Path("net.ckpt"), [str(folder)], "<script>x</script>,dog", out, html=True)
    text = (out / "index.html").read_text()
    links = Links()
    links.feed(text)
    assert {unquote(link) for link in links.targets} == {
        f"./{Path(name).with_suffix('')}_segments.png" for name in names
    }
    assert all((out / unquote(link)).is_file() for link in links.targets)
    assert links.images == len(names), "inside the page"
    assert links.tags <= {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "figure",
                          "figcaption", "a", "img", "b", "p", "ul", "li"}  # fmt: skip
    for name in (*names, "bad<i>.jpg cannot be read", "<script>x</script> 0.75"):
        assert name in links.text
    assert all(len(part) < 20_000 for part in text.splitlines())


class Links(HTMLParser):
    """Links, embedded pictures, tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets, self.images, self.tags, self.text = set[str](), 0, set[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag == "a":
            self.targets.add(values["href"] or "")
        if tag == "img":
            self.images += (values["src"] or "").startswith("data:image/jpeg;base64,")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_progress_bar_only_on_a_terminal(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    for terminal in (False, True):
        monkeypatch.setattr(predict_module, "Console", partial(Console, force_terminal=terminal, width=999))
        predicted(tmp_path / "out", tmp_path)
        shown = capsys.readouterr().out
        assert ("%" in shown) == terminal
        assert "b.jpg: ball (0.75)" in shown


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
    printed = capsys.readouterr().out
    assert "photo.jpg: no segment (best score 0.03: ball); " in printed
    assert "overlap_threshold=0.4" in printed, "half of that in use"
    assert results(tmp_path / "out") == {"photo"}
    assert predicted(tmp_path / "out", tmp_path / "photo.jpg", other="cat") == []
    assert "photo.jpg: no segment (words of --other " in capsys.readouterr().out


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
