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

    Each line is a word and its numbers, separated by spaces; a first line with two numbers only is skipped.
    A word is the line in lower case, or else the first that differs from it in case only. Files are read once
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

    def __call__(self, labels: Sequence[Sequence[str]]) -> tuple[Tensor, tuple[int, ...]]:
        """Unit vectors of the names of each class: for each file, the mean over a name's words.

        Words without a vector are skipped, and so are names without one in each file.

        Returns:
            [sum(counts), sum of widths], and the counts of names of the classes.

        Raises:
            WeightsError: no name of a class has a vector.
        """
        words = {name: _WORD.findall(name.lower()) for names in labels for name in names}
        self._read({word for some in words.values() for word in some})
        found = [[v for name in names if (v := self._vector(words[name])) is not None] for names in labels]
        if unknown := [names[0] for names, some in zip(labels, found, strict=True) if not some]:
            raise WeightsError(
                f"{' and '.join(map(str, self.files))}: no vector for {', '.join(unknown)}; give these "
                "classes a name of known words"
            )
        vectors = torch.stack([vector for some in found for vector in some])
        return F.normalize(vectors, dim=1), tuple(map(len, found))

    def _vector(self, words: Sequence[str]) -> Tensor | None:
        parts = [[known[word] for word in words if word in known] for known in self._known]
        return torch.cat([torch.stack(part).mean(0) for part in parts]) if all(parts) else None

    def _read(self, words: set[str]) -> None:
        new = words - self._asked
        if not new:
            return
        for file, width, known in zip(self.files, self.widths, self._known, strict=True):
            for written, numbers in _lines(file):
                word = written.lower()
                if word in new and (word == written or word not in known):
                    known[word] = _parse(numbers, width, written, file)
        self._asked |= new


def _lines(file: Path) -> Iterable[tuple[str, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            word, _, numbers = line.rstrip().partition(" ")
            yield word, numbers


def _width(file: Path) -> int:
    """Numbers of a vector, from the first two lines."""
    if not file.is_file():
        raise WeightsError(f"fusion.word_vectors: {file} is no file; give text files, or [] for CLIP's texts")
    counts = [len(numbers.split()) for (_, numbers), _ in zip(_lines(file), range(2), strict=False)]
    if not counts or counts[-1] < 2:
        raise WeightsError(f"{file} has no vectors: each line needs a word and its numbers (fastText's .vec)")
    return counts[-1]


def _parse(numbers: str, width: int, word: str, file: Path) -> Tensor:
    try:
        vector = torch.tensor([float(number) for number in numbers.split()])
    except ValueError as error:
        raise WeightsError(f"{file}: the vector of {word!r} is damaged ({error})") from error
    if not vector.isfinite().all() or not vector.any():
        raise WeightsError(f"{file}: the vector of {word!r} is zero or not finite")
    if len(vector) != width:
        raise WeightsError(f"{file}: the vector of {word!r} has {len(vector)} numbers, others have {width}")
    return vector
