"""The look that all pictures of the documentation share: colours, fonts, canvas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw

WIDTH = 1660  # pixels of PNG pictures: twice the width of a README


@dataclass(frozen=True)
class Theme:
    """Colours of a page.

    Attributes:
        suffix: of file names.
        paper, panel: background of a picture and of boxes in it.
        ink, muted, line: text, secondary text, lines.
        series: colours that tell things apart.
    """

    suffix: str
    paper: str
    panel: str
    ink: str
    muted: str
    line: str
    series: tuple[str, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """All of them."""
        return (self.paper, self.panel, self.ink, self.muted, self.line, *self.series)


LIGHT = Theme(
    "", "#ffffff", "#f4f6f8", "#1c2733", "#5b6875", "#d3dae1", ("#0f8b8d", "#e07a1f", "#3d6fc4", "#9a4f96")
)
DARK = Theme(
    "-dark",
    "#0d1117",
    "#1a212b",
    "#e6edf3",
    "#9aa7b4",
    "#36414d",
    ("#3cc4bd", "#f2a154", "#7fa8f0", "#cf8fcb"),
)
THEMES = (LIGHT, DARK)


def in_dark(drawing: str) -> str:
    """A vector drawing in the light theme's colours, in those of the dark theme."""
    for light, dark in zip(LIGHT.colours, DARK.colours, strict=True):
        drawing = drawing.replace(light, dark)
    return drawing


def luminance(colour: tuple[int, int, int]) -> float:
    """How bright a colour looks, 0..1 (ITU-R BT.601)."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def canvas(height: int, theme: Theme = LIGHT) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture of the usual width, and its pen."""
    picture = Image.new("RGB", (WIDTH, height), theme.paper)
    return picture, ImageDraw.Draw(picture)


def place(
    picture: Image.Image, tile: Image.Image, corner: tuple[int, int], size: tuple[int, int], radius: int = 18
) -> None:
    """Paste a tile with round corners, centred and cut to ``size``."""
    scale = max(size[0] / tile.width, size[1] / tile.height)
    wide = tile.resize((round(tile.width * scale), round(tile.height * scale)), Image.Resampling.LANCZOS)
    left, top = (wide.width - size[0]) // 2, (wide.height - size[1]) // 2
    mask = Image.new("L", (2 * size[0], 2 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *(2 * side - 1 for side in size)), 2 * radius, 255)
    cut = wide.crop((left, top, left + size[0], top + size[1]))
    picture.paste(cut, corner, mask.resize(size, Image.Resampling.LANCZOS))


def save_png(picture: Image.Image, path: Path, colours: int | None = None) -> Path:
    """Save without metadata, with at most ``colours`` colours if they are given."""
    if colours is not None:
        picture = picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    picture.save(path, "PNG", optimize=True)
    return path


@contextmanager
def plotting(theme: Theme) -> Iterator[None]:
    """matplotlib in the colours of a theme; the same figure gives the same file."""
    settings = {
        "svg.hashsalt": "odise_pl",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(settings):
        yield
