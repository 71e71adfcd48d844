"""Pictures of what the demo's network sees in the small world: hero.png, words.png, open_set.png."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.images import open_image
from odise_pl.metrics.panoptic_quality import count_matches, panoptic_quality
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.prediction.drawing import load_font, paint, segment_color
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import Batch, PanopticSegmentation, Size
from odise_pl.vocabulary import Vocabulary, load_vocabulary
from scripts.docs.style import LIGHT, WIDTH, canvas, luminance, place, save_png

_SCALE = 4  # masks are asked for at four times the picture's size: their borders are smoother
_MARGIN, _HEADER, _GAP = 26, 44, 34
_ROWS = 3  # of the sheet
_STAR = "\N{BLACK STAR} "
_LEGEND = f"{_STAR} no labels in training"
_WORDS = {
    "names": ["grass:stuff", "rocket", "sky:stuff", "tree", "bird", "sea:stuff"],
    "other names": ["lawn:stuff", "spaceship", "sky:stuff", "tree", "bird", "water:stuff"],
    "synonyms": ["grass:stuff", "flying thing,rocket,bird", "sky:stuff", "tree", "sea:stuff"],
}


@dataclass(frozen=True)
class Scene:
    """A picture of a data set.

    Attributes:
        batch: it alone, resized as in evaluation.
        original: the picture in full.
        quality: its panoptic quality on the data set's vocabulary, the mean over its classes, 0..1.
    """

    batch: Batch
    original: Image.Image
    quality: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of drawings."""
        height, width = self.batch.original_sizes[0]
        return _SCALE * height, _SCALE * width

    @property
    def image(self) -> Image.Image:
        """The picture at the size of drawings."""
        return self.original.resize(self.size[::-1], Image.Resampling.LANCZOS)

    @property
    def truth(self) -> PanopticSegmentation:
        """The truth at the size of drawings."""
        truth = self.batch.truths[0]
        assert truth is not None
        ids = truth.panoptic.ids.repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1)
        return PanopticSegmentation(ids, truth.panoptic.segments)


class Gallery:
    """The open set, seen by a network.

    Args:
        segmenter: the network.
        shards: folder of the data set ``toy_open``.
    """

    def __init__(self, segmenter: Segmenter, shards: Path) -> None:
        self.model, self.training = segmenter.model, segmenter.training
        data = PanopticDataModule(
            val={"toy_open": str(shards)},
            num_workers=0,
            eval_short_side=segmenter.resize.short_side,
            eval_long_side=segmenter.resize.long_side,
        )
        self.vocabulary = data.vocabulary("toy_open")
        seen = self.vocabulary.overlap(self.training)
        self.novel = frozenset(index for index, known in enumerate(seen) if not known)
        self.names = [
            _STAR * (index in self.novel) + name for index, name in enumerate(self.vocabulary.names)
        ]
        self._classes = self.model.prepare(self.vocabulary, self.training)
        originals = _read_images(shards)
        self.scenes = [
            Scene(batch, originals[batch.keys[0]], self._quality(batch))
            for batch in data.eval_loader("toy_open")
        ]

    def find(self, scene: Scene, vocabulary: Vocabulary | None = None) -> PanopticSegmentation:
        """The network's map at the size of drawings; None: with the words of the small world."""
        classes = self._classes if vocabulary is None else self.model.prepare(vocabulary, self.training)
        return self._predict(scene.batch, scene.size, classes)

    def novel_classes(self, scene: Scene) -> set[int]:
        """Novel classes in the truth."""
        return {segment.category for segment in scene.truth.segments} & self.novel

    def by_quality(self) -> list[Scene]:
        """All pictures, the best first."""
        return sorted(self.scenes, key=lambda scene: -scene.quality)

    def best(self) -> Scene:
        """The picture with the best quality of those that are wide and have a novel class."""
        wide = (scene for scene in self.by_quality() if scene.size[1] > scene.size[0])
        return next(scene for scene in wide if self.novel_classes(scene))

    def first(self, count: int) -> list[Scene]:
        """The first pictures with novel classes, good or bad."""
        return [scene for scene in self.scenes if self.novel_classes(scene)][:count]

    def _predict(self, batch: Batch, size: Size, classes: InferenceClasses) -> PanopticSegmentation:
        return self.model.predict(batch.images, batch.valid_sizes, [size], classes)[0].panoptic

    def _quality(self, batch: Batch) -> float:
        (truth,) = batch.truths
        assert truth is not None
        found = self._predict(batch, batch.original_sizes[0], self._classes)
        counts = count_matches(found, truth.panoptic, len(self.vocabulary))
        return panoptic_quality(counts, self.vocabulary.isthing).all.pq


def _read_images(shards: Path) -> dict[str, Image.Image]:
    """Images of a data set by key; evaluation resizes them."""
    images = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member) if suffix in ("jpg", "png") else None
                if content is not None:
                    images[key] = open_image(content.read()).convert("RGB")
    return images


def draw_hero(gallery: Gallery, folder: Path) -> Path:
    """Image, words and result of the picture on which the network is best, by panoptic quality."""
    scene = gallery.best()
    found = gallery.find(scene)
    tile = (600, round(600 * scene.size[0] / scene.size[1]))
    top, words = _MARGIN + _HEADER, _MARGIN + tile[0] + _GAP
    right = WIDTH - _MARGIN - tile[0]
    picture, draw = canvas(top + tile[1] + _MARGIN)
    for title, left in (("image", _MARGIN), ("words", words), ("result", right)):
        draw.text((left + 4, _MARGIN), title, LIGHT.ink, load_font(27, bold=True))
    draw.text((right - _GAP - 4, _MARGIN + 5), _LEGEND, LIGHT.muted, load_font(20), anchor="ra")
    place(picture, scene.image, (_MARGIN, top), tile)
    place(picture, _painted(scene.image, found, gallery.names, 21, tile), (right, top), tile)
    colours = {segment.category: segment_color(segment) for segment in found.segments}
    _write_words(picture, (words, top, right - _GAP - words, tile[1]), gallery.names, colours)
    return save_png(picture, folder / "hero.png", colours=256)


def _write_words(
    picture: Image.Image,
    box: tuple[int, int, int, int],
    names: Sequence[str],
    colours: Mapping[int, tuple[int, int, int]],
) -> None:
    """Words in centred rows that fill a box; those that were found in their colours."""
    draw, size = ImageDraw.Draw(picture), 20
    font = load_font(size)
    rows: list[list[int]] = [[]]
    for index in range(len(names)):
        if _length([*rows[-1], index], names, font, size) > box[2]:
            rows.append([])
        rows[-1].append(index)
    step = box[3] / len(rows)
    for number, row in enumerate(rows):
        x = box[0] + (box[2] - _length(row, names, font, size)) / 2
        y = box[1] + (number + 0.5) * step
        for index in row:
            width = font.getlength(names[index]) + 1.1 * size
            pill = (x, y - 0.8 * size, x + width, y + 0.8 * size)
            fill = colours.get(index)
            draw.rounded_rectangle(pill, 0.8 * size, fill or LIGHT.panel)
            ink = LIGHT.muted if fill is None else "white" if luminance(fill) < 0.5 else LIGHT.ink
            draw.text((x + width / 2, y), names[index], ink, font, "mm")
            x += width + 0.35 * size


def _length(row: Sequence[int], names: Sequence[str], font: FreeTypeFont, size: int) -> float:
    return sum(font.getlength(names[index]) + 1.45 * size for index in row) - 0.35 * size


def draw_words(gallery: Gallery, folder: Path) -> Path:
    """The hero's picture with other words."""
    scene, columns = gallery.best(), 1 + len(_WORDS)
    width = (WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) // columns
    tile = (width, round(width * scene.size[0] / scene.size[1]))
    pills = _MARGIN + _HEADER
    top = pills + 118
    picture, draw = canvas(top + tile[1] + _MARGIN)
    lefts = [_MARGIN + column * (width + _GAP) for column in range(columns)]
    for left, title in zip(lefts, ("image", *_WORDS), strict=True):
        draw.text((left + width / 2, _MARGIN), title, LIGHT.ink, load_font(25, bold=True), anchor="ma")
    place(picture, scene.image, (lefts[0], top), tile)
    for left, words in zip(lefts[1:], _WORDS.values(), strict=True):
        vocabulary = load_vocabulary(words)
        found = gallery.find(scene, vocabulary)
        colours = {segment.category: segment_color(segment) for segment in found.segments}
        typed = [",".join(names) for names in vocabulary.labels]
        _write_words(picture, (left, pills, width, top - pills - 12), typed, colours)
        place(picture, _painted(scene.image, found, vocabulary.names, 19, tile), (left, top), tile)
    return save_png(picture, folder / "words.png", colours=256)


def draw_open_set(gallery: Gallery, folder: Path) -> Path:
    """The first pictures of the open set that have novel classes: image, truth and prediction."""
    side, small, between = 248, 10, 60
    top = _MARGIN + _HEADER
    picture, draw = canvas(top + _ROWS * (side + small) + 2 * _MARGIN)
    lefts = [_MARGIN + column * (side + small) + (between - small) * (column > 2) for column in range(6)]
    for left, title in zip(lefts, 2 * ("image", "truth", "prediction"), strict=True):
        draw.text((left + side / 2, _MARGIN), title, LIGHT.ink, load_font(24, bold=True), anchor="ma")
    for number, scene in enumerate(gallery.first(2 * _ROWS)):
        scale = side / max(scene.size)
        tile = (round(scale * scene.size[1]), round(scale * scene.size[0]))
        maps = (scene.truth, gallery.find(scene))
        tiles = [scene.image, *(_painted(scene.image, found, gallery.names, 18, tile) for found in maps)]
        y = top + number // 2 * (side + small) + (side - tile[1]) // 2
        for left, shown in zip(lefts[number % 2 * 3 :], tiles, strict=False):
            place(picture, shown, (left + (side - tile[0]) // 2, y), tile, radius=12)
    draw.text((WIDTH / 2, picture.height - _MARGIN), _LEGEND, LIGHT.muted, load_font(21), anchor="ms")
    return save_png(picture, folder / "open_set.png", colours=256)


def _painted(
    image: Image.Image,
    result: PanopticSegmentation,
    names: Sequence[str],
    font_size: int,
    tile: tuple[int, int],
) -> Image.Image:
    """A result whose names have a font of that size once it is shown in a tile."""
    return paint(image, result, names, font_size=round(font_size * image.width / tile[0]))
