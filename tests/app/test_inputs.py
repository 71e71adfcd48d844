"""What visitors send is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from odise_pl.app.inputs import read_picture, read_words
from odise_pl.errors import UserError
from odise_pl.vocabulary import load_vocabulary


@pytest.mark.parametrize(
    "text",
    [
        "dog",
        "dog, park bench,grass:stuff",
        "dog,puppy\ngrass,lawn:stuff",
        '["dog,puppy", grass:stuff]',
        "coco_panoptic",
    ],
)
def test_words_are_read_as_on_the_command_line(text: str) -> None:
    assert read_words(f" {text}\n").labels == load_vocabulary(text, one_word=True).labels


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no words"),
        (" \n ", "no words"),
        ("dog, Dog", "same name"),
        ("dog,,cat", "not written as"),
        (",".join(f"word {number}" for number in range(2000)), "2000"),
        ("ade20k_847", "1281"),
        ("x" * 30_000, "30000"),
        ('["${oc.env:HOME}"]', r"\$"),
        ("[&a dog, *a]", "brackets"),
    ],
)
def test_bad_words_are_refused(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_words(text)


def test_words_cannot_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("password")
    for name in ("secret.txt", str(tmp_path / "secret.txt")):
        assert read_words(name).names == (name,)


def test_pictures_are_upright(tmp_path: Path) -> None:
    image = Image.new("L", (60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.jpg", exif=exif)
    read = read_picture(tmp_path / "phone.jpg")
    assert (read.size, read.mode) == ((40, 60), "RGB")


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (10_000, 5_000)).save(tmp_path / "large.png")
    for path, words in (
        (tmp_path / "gone.jpg", "gone.jpg .*upload it again"),
        (tmp_path / "text.jpg", "text.jpg .*JPEG, PNG"),
        (tmp_path / "large.png", "large.png has 50 megapixels"),
    ):
        with pytest.raises(UserError, match=words):
            read_picture(path)
