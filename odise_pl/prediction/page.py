"""One HTML page of all results, with small pictures inside that link to the files."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from odise_pl.files import write_text
from odise_pl.prediction.segmentation import NamedSegment

_SIDE = 360  # of the small pictures, in pixels
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Segments</title><style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1.5rem }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
figure { margin: 0; overflow-wrap: anywhere }
img { width: 100%; height: 15rem; object-fit: contain; background: #8882 }
ul { margin: .3rem 0; padding: 0; list-style: none }
figcaption li { display: inline-block; margin-right: .8rem }
</style></head><body><h1>Segments</h1>
"""


def data_url(image: Image.Image, quality: int) -> str:
    """An image as the address of a JPEG inside a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class ResultPage:
    """Collects the results of pictures; it keeps some 20 KB for each.

    Args:
        folder: of the results and of the page, ``index.html``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index.html"
        self._figures: list[str] = []

    def add(self, picture: Path, name: Path, segments: Sequence[NamedSegment]) -> None:
        """Add a picture.

        Args:
            picture: its path.
            name: of its results, which :meth:`Segmentation.save` has written, relative to the folder.
            segments: what was found.
        """
        target = name.with_name(f"{name.name}_segments.png")
        with Image.open(self.path.parent / target) as drawn:
            drawn.thumbnail((_SIDE, _SIDE), reducing_gap=2)
            small = data_url(drawn, quality=85)
        found = _items(f"{segment.name} {segment.score:.2f}" for segment in segments)
        self._figures.append(
            f'<figure><a href="./{quote(os.fsencode(target))}">'
            f'<img loading="lazy" alt="{_text(picture.name)}" src="{small}"></a>'
            f"<figcaption><b>{_text(str(picture))}</b>{found or '<p>no segment</p>'}</figcaption></figure>\n"
        )

    def write(self, problems: Iterable[str]) -> None:
        """Write the page; ``problems`` are the messages of skipped pictures."""
        skipped = _items(problems)
        end = f"<h2>Skipped</h2>{skipped}" if skipped else ""
        write_text(self.path, f"{_HEAD}<main>\n{''.join(self._figures)}</main>{end}</body></html>\n")


def _items(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return items and f"<ul>{items}</ul>"


def _text(text: str) -> str:
    """Escaped; names of files need not be UTF-8."""
    return escape(os.fsencode(text).decode(errors="replace"))
