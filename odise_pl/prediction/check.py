"""Look at a shard set: its labels over its images, and a table of its classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from odise_pl.data.decoding import DecodedSample, try_decode
from odise_pl.data.images import resize_image
from odise_pl.data.label_maps import resize_ids
from odise_pl.data.manifest import Manifest, ShardSet
from odise_pl.data.reading import Item, read_shard
from odise_pl.data.records import DataError
from odise_pl.metrics.tables import Table
from odise_pl.prediction.drawing import load_font, paint
from odise_pl.structures import PanopticSegmentation, Segment

_CELL = 400  # longest side of a picture on the sheet
_GAP = 12
_TITLE = 22  # height of the line with its key
_NONE = "-"


@dataclass
class SetSummary:
    """What the labels of a shard set hold.

    Attributes:
        manifest: of the set.
        images: how many images have each class.
        segments: segments of each class, crowds included.
        pixels: pixels of each class; -1 is void.
        sizes: height and width of every readable image.
        unlabelled: images without labels.
        damage: samples that cannot be read.
    """

    manifest: Manifest
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unlabelled: int = 0
    damage: list[str] = field(default_factory=list)

    def add(self, sample: DecodedSample) -> None:
        """Count a sample."""
        self.sizes.append(sample.size)
        if not sample.labelled:
            self.unlabelled += 1
            return
        classes = {segment.id: segment.category for segment in sample.segments}
        self.images.update(set(classes.values()))
        self.segments.update(classes.values())
        for value, count in zip(*np.unique(sample.ids, return_counts=True), strict=True):
            self.pixels[classes.get(int(value), -1)] += int(count)

    def table(self) -> Table:
        """One row for each class, the most frequent first."""
        total = max(1, sum(self.pixels.values()))
        categories = list(enumerate(self.manifest.vocabulary.categories))
        rows = [
            (
                category.name,
                "thing" if category.isthing else "stuff",
                str(self.images[index]),
                str(self.segments[index]),
                f"{100 * self.pixels[index] / total:.2f}",
            )
            for index, category in sorted(categories, key=lambda pair: -self.segments[pair[0]])
        ]
        rows.append(("(void)", _NONE, _NONE, _NONE, f"{100 * self.pixels[-1] / total:.2f}"))
        return Table(
            self.manifest.name,
            ("class", "kind", "images", "segments", "pixels %"),
            tuple(rows),
            self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        names = self.manifest.vocabulary.names
        never = [name for index, name in enumerate(names) if not self.segments[index]]
        sides = [(min(side), max(side)) for side in zip(*self.sizes, strict=True)] or [(0, 0)] * 2
        (low, high), (narrow, wide) = sides
        notes = [f"images: {len(self.sizes)}, {narrow} to {wide} pixels wide, {low} to {high} high"]
        notes += [f"classes without a segment: {', '.join(never)}"] if never else []
        notes += [f"images without labels: {self.unlabelled}"] if self.unlabelled else []
        return (*notes, *(f"damaged: {text}" for text in self.damage))


def check_set(shard_set: ShardSet, count: int) -> tuple[SetSummary, Image.Image]:
    """Decode every sample, and draw labels over some images.

    Args:
        shard_set: the set.
        count: how many images to draw, spread evenly over the set.

    Returns:
        the summary, and the contact sheet.
    """
    manifest = shard_set.manifest
    summary, cells = SetSummary(manifest), list[Image.Image]()
    chosen = {round(place) for place in np.linspace(0, manifest.counts.samples - 1, count)}
    for number, item in enumerate(_items(shard_set)):
        sample = try_decode(item, manifest.vocabulary.isthing)
        if isinstance(sample, DataError):
            summary.damage.append(str(sample))
            continue
        summary.add(sample)
        if number in chosen:
            cells.append(_cell(sample, manifest.vocabulary.names))
    return summary, _sheet(cells)


def _items(shard_set: ShardSet) -> Iterator[Item]:
    for url, size in zip(shard_set.urls, shard_set.sizes, strict=True):
        yield from read_shard(url, list(range(size)))


def _cell(sample: DecodedSample, names: Sequence[str]) -> Image.Image:
    """A picture with its labels, below its key."""
    height, width = sample.size
    scale = _CELL / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # small numbers: the painter makes a table of colours up to the largest id
    segments = tuple(
        Segment(number, one.category, one.isthing, one.iscrowd)
        for number, one in enumerate(sample.segments, start=1)
    )
    order = np.argsort([one.id for one in sample.segments])
    known = np.array([0, *sorted(one.id for one in sample.segments)])
    numbers = np.array([0, *(order + 1)], dtype=np.int32)
    ids = numbers[np.searchsorted(known, resize_ids(sample.ids, size))]
    picture = resize_image(sample.image, size)
    painted = paint(picture, PanopticSegmentation(torch.from_numpy(ids), segments), names, 0.55)
    cell = Image.new("RGB", (_CELL, _CELL + _TITLE), "white")
    ImageDraw.Draw(cell).text((0, 0), sample.key, "black", load_font(14))
    cell.paste(painted, (0, _TITLE))
    return cell


def _sheet(cells: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, on white."""
    columns = max(1, math.ceil(math.sqrt(len(cells))))
    rows = max(1, math.ceil(len(cells) / columns))
    width, height = _CELL + _GAP, _CELL + _TITLE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (_GAP + column * width, _GAP + row * height))
    return sheet


def write_check(shard_set: ShardSet, out: Path, count: int) -> SetSummary:
    """:func:`check_set`, with the sheet written to a PNG file; OSError if it cannot be written."""
    summary, sheet = check_set(shard_set, count)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG")
    return summary
