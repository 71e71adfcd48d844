from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odise_pl.models.classifiers.word_vectors import WordVectors
from odise_pl.models.weights import WeightsError

FIRST = "3 2\ndog 1 0\nTraffic 0 2\nlight 4 0\n"
SECOND = "light 0 0 3\ndog 0 5 0\n"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.vec", tmp_path / "two.txt"]
    for path, text in zip(paths, (FIRST, SECOND), strict=True):
        path.write_text(text)
    return paths


def test_names_are_means_of_words_joined_over_files(files: list[Path]) -> None:
    words = WordVectors(files)
    assert words.widths == [2, 3]
    found, counts = words([["Dog", "unicorn"], ["traffic light", "light"]])
    dog = torch.tensor([1.0, 0, 0, 5, 0]) / 26**0.5
    traffic_light = torch.tensor([2.0, 1, 0, 0, 3]) / 14**0.5  # the second file has no vector of "traffic"
    light = torch.tensor([4.0, 0, 0, 0, 3]) / 5
    torch.testing.assert_close(found, torch.stack([dog, traffic_light, light]))
    assert counts == (1, 2)  # no file knows unicorns


@pytest.mark.parametrize("lines", [("Cup 1 0", "cup 0 1"), ("cup 0 1", "Cup 1 0")])
def test_lower_case_comes_before_other_spellings(tmp_path: Path, lines: tuple[str, str]) -> None:
    file = tmp_path / "words.vec"
    file.write_text("\n".join([*lines, "Apple 1 0", "APPLE 0 1"]))
    found, _ = WordVectors([file])([["cup"], ["apple"]])
    torch.testing.assert_close(found, torch.tensor([[0.0, 1], [1, 0]]))


def test_files_are_read_again_for_new_words_only(files: list[Path]) -> None:
    words = WordVectors(files)
    known, _ = words([["dog"]])
    files[0].write_text(FIRST + "cat 3 3\n")
    files[1].write_text(SECOND + "cat 1 1 1\n")
    assert words([["cat"]])[0].shape == (1, 5)
    for file in files:
        file.unlink()
    torch.testing.assert_close(words([["dog"]])[0], known)


@pytest.mark.parametrize(
    ("text", "names", "word"),
    [
        (FIRST, ["dog", "giraffe"], "giraffe"),
        (FIRST + "cat 1\n", ["cat"], "'cat' has 1"),
        (FIRST + "cat 1 x\n", ["cat"], "'cat' is damaged"),
        (FIRST + "cat nan 1\n", ["cat"], "'cat' is zero or not finite"),
        (FIRST + "cat 0 0\n", ["cat"], "'cat' is zero or not finite"),
        ("dog\ncat\n", ["dog"], "no vectors"),
        ("", ["dog"], "no vectors"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, names: list[str], word: str) -> None:
    file = tmp_path / "words.vec"
    file.write_text(text)
    with pytest.raises(WeightsError, match=word):
        WordVectors([file])([[name] for name in names])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.vec is no file"):
        WordVectors([tmp_path / "nothing.vec"])
