"""A result as HTML: a picture whose segments show their names, and a table that hides and shows them.

It needs no script: styles react to the pointer and to boxes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from odise_pl.data.label_maps import resize_ids
from odise_pl.prediction.drawing import segment_color
from odise_pl.prediction.page import data_url
from odise_pl.prediction.segmentation import NamedSegment, Segmentation

_LONGEST_SIDE = 1280  # of the picture on the page; downloads have the full size
_STYLE = """
.viewer figure { position: relative; margin: 0; }
.viewer svg { display: block; width: 100%; max-height: 75vh; }
.viewer path { fill-opacity: 0.6; }
.viewer .name { position: absolute; top: 8px; left: 8px; padding: 2px 10px; border-radius: 8px; color: white;
    background: #181d26; opacity: 0; pointer-events: none; }
.viewer table { width: 100%; margin-top: 12px; }
.viewer table, .viewer tr, .viewer td, .viewer th { border: 0 !important; }
.viewer td, .viewer th { padding: 4px 8px !important; }
.viewer tr > :nth-child(n+3) { text-align: right; }
.viewer i { display: inline-block; width: 12px; height: 12px; margin-right: 8px; border-radius: 3px; }
"""


def render(result: Segmentation) -> str:
    """The HTML of a result.

    A segment's name is shown while the pointer is on it; its row in the table has a box that hides it.
    """
    colors = {
        segment.id: "#{:02x}{:02x}{:02x}".format(*segment_color(segment))
        for segment in result.prediction.panoptic.segments
    }
    largest = sorted(result.segments, key=lambda segment: -segment.area)
    return (
        f'<div class="viewer"><style>{_STYLE}{"".join(map(_rules, largest))}</style>'
        f"<figure>{_svg(result, colors)}{''.join(map(_name, largest))}</figure>"
        f"{_table(result, largest, colors) if largest else _nothing(result)}</div>"
    )


def _rules(segment: NamedSegment) -> str:
    """What the pointer and the box of a segment do."""
    number = segment.id
    return (
        f".viewer:has(.c{number}:not(:checked)) .s{number} {{ display: none; }}"
        f".viewer:has(.r{number}:hover) .s{number}, .viewer .s{number}:hover {{ fill-opacity: 0.9; }}"
        f".viewer:has(.s{number}:hover) .n{number} {{ opacity: 1; }}"
        f".viewer:has(.s{number}:hover) .r{number} {{ font-weight: bold; }}"
    )


def _svg(result: Segmentation, colors: Mapping[int, str]) -> str:
    scale = min(1, _LONGEST_SIDE / max(result.image.size))
    width, height = (max(1, round(scale * side)) for side in result.image.size)
    ids = resize_ids(result.ids, (height, width))
    shapes = "".join(
        f'<path class="s{number}" fill="{color}" d="{_outline(ids == number)}"/>'
        for number, color in colors.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" '
        f'href="{data_url(result.image.resize((width, height)), quality=90)}"/>{shapes}</svg>'
    )


def _outline(mask: NDArray[np.bool_]) -> str:
    """A mask as an SVG path: a rectangle for each run of pixels in a row."""
    rows, edges = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1))
    runs = zip(rows[::2].tolist(), edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return "".join(f"M{start} {row}H{end}v1H{start}z" for row, start, end in runs)


def _name(segment: NamedSegment) -> str:
    return f'<span class="name n{segment.id}">{_plain(segment.name)} {segment.score:.2f}</span>'


def _table(result: Segmentation, segments: Sequence[NamedSegment], colors: Mapping[int, str]) -> str:
    pixels = result.image.width * result.image.height
    rows = (_row(segment, colors[segment.id], segment.area / pixels) for segment in segments)
    return (
        "<table><thead><tr><th>show</th><th>segment</th><th>score</th><th>area</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(segment: NamedSegment, color: str, share: float) -> str:
    name = _plain(segment.name)
    return (
        f'<tr class="r{segment.id}"><td><input type="checkbox" class="c{segment.id}" checked '
        f'aria-label="show {name}"></td><td><i style="background: {color}"></i>{name}</td>'
        f"<td>{segment.score:.2f}</td><td>{share:.1%}</td></tr>"
    )


def _nothing(result: Segmentation) -> str:
    label, score = result.prediction.best
    name = _plain(result.vocabulary.names[label])
    return f"<p>No segment; the best score is {score:.2f} ({name}). Lower a threshold to see more.</p>"


def _plain(text: str) -> str:
    """Text that neither HTML nor the page's templates interpret."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;")
