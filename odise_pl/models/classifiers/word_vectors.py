"""Classes by vectors of their words, which were trained on text alone (SPNet, CVPR 2019)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.weights import WeightsError

_WORD = re.compile(r"[^\W\d_]+")


class WordVectors:
    """Vectors of words in text files, as fastText's ``.vec`` and word2vec's text format.

    Each line is a word and its numbers; a first line with two numbers only is skipped. Files are read once
    for each new vocabulary, and only the vectors of its words are kept.

    Args:
        files: their vectors are concatenated.

    Raises:
        WeightsError: a file is missing or has no vectors.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = [Path(file) for file in files]
        self._known: list[dict[str, Tensor]] = [{} for _ in self.files]
        self._asked: set[str] = set()
        self.widths = [_width(file) for file in self.files]

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Unit vectors [len(names), sum of widths] of names: for each file, the mean over a name's words.

        Words are compared in lower case; those without a vector are left out.

        Raises:
            WeightsError: a file has no vector for any word of a name.
        """
        words = [_WORD.findall(name.lower()) for name in names]
        self._read({word for some in words for word in some})
        found = [
            torch.stack([_mean(name, some, known, file) for name, some in zip(names, words, strict=True)])
            for file, known in zip(self.files, self._known, strict=True)
        ]
        return F.normalize(torch.cat(found, dim=1), dim=1)

    def _read(self, words: set[str]) -> None:
        new = words - self._asked
        if not new:
            return
        for file, width, known in zip(self.files, self.widths, self._known, strict=True):
            for word, numbers in _lines(file):
                if word in new and word not in known:
                    known[word] = _vector(numbers, width, word, file)
        self._asked |= new


def _lines(file: Path) -> Iterable[tuple[str, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            word, _, numbers = line.rstrip().partition(" ")
            yield word.lower(), numbers


def _width(file: Path) -> int:
    """Numbers of a vector, from the first two lines."""
    if not file.is_file():
        raise WeightsError(
            f"fusion.word_vectors: {file} does not exist; give text files, or [] for CLIP's texts"
        )
    counts = [len(numbers.split()) for (_, numbers), _ in zip(_lines(file), range(2), strict=False)]
    if not counts or counts[-1] < 2:
        raise WeightsError(f"{file} has no vectors: each line needs a word and its numbers (fastText's .vec)")
    return counts[-1]


def _vector(numbers: str, width: int, word: str, file: Path) -> Tensor:
    try:
        vector = torch.tensor([float(number) for number in numbers.split()])
    except ValueError as error:
        raise WeightsError(f"{file}: the vector of {word!r} is damaged ({error})") from error
    if len(vector) != width:
        raise WeightsError(f"{file}: the vector of {word!r} has {len(vector)} numbers, others have {width}")
    return vector


def _mean(name: str, words: Sequence[str], known: dict[str, Tensor], file: Path) -> Tensor:
    vectors = [known[word] for word in words if word in known]
    if not vectors:
        raise WeightsError(f"{file} has no vector for a word of {name!r}: name the class by another word")
    return torch.stack(vectors).mean(0)
