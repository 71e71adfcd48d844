"""The network as a vector drawing: architecture.svg and architecture-dark.svg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from scripts.docs.style import SANS, THEMES, Theme

Box = tuple[float, float, float, float]  # left, top, width, height
_SIZE = (960, 506)
_FROZEN, _TRAINED = 2, 1  # colours of the theme's series
_ROW = 160  # top of the row of image networks


@dataclass
class Drawing:
    """Shapes of an SVG, in drawing order."""

    theme: Theme
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, size: float = 13, kind: str = "sub", at: str = "middle"
    ) -> None:
        """A line of text; ``y`` is its baseline."""
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{at}"'
        self.parts.append(f'<text class="{kind}" {place}>{escape(words)}</text>')

    def shape(
        self, box: Box, fill: str, stroke: str = "none", radius: float = 9, more: str = 'stroke-width="1.2"'
    ) -> None:
        """A rectangle with round corners: left, top, width, height."""
        x, y, width, height = box
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self.parts.append(f'<rect {place} fill="{fill}" stroke="{stroke}" {more}/>')

    def tinted(self, box: Box, kind: int | None, radius: float = 9) -> None:
        """A box of a kind: frozen, trained, or None for plain arithmetic."""
        colour = self.theme.muted if kind is None else self.theme.series[kind]
        opacity, width = (0.06, 1.2) if kind is None else (0.13, 1.6)
        self.shape(box, colour, colour, radius, f'stroke-width="{width}" fill-opacity="{opacity}"')

    def box(self, box: Box, title: str, lines: Sequence[str] = (), kind: int | None = None) -> None:
        """A part of the network with its name."""
        self.tinted(box, kind)
        x, y, width, height = box
        first = y + height / 2 + 5 - 8.5 * len(lines)
        self.text(x + width / 2, first, title, 14, "name")
        for number, line in enumerate(lines, start=1):
            self.text(x + width / 2, first + 17 * number, line, 12)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        look = f'fill="none" stroke="{self.theme.muted}" stroke-width="1.5" marker-end="url(#head)"'
        self.parts.append(f'<polyline points="{path}" {look}/>')

    def svg(self) -> str:
        """The whole file."""
        theme, (width, height) = self.theme, _SIZE
        style = (
            f"text{{font-family:{SANS}}} .name{{font-weight:600;fill:{theme.ink}}} .sub{{fill:{theme.muted}}}"
        )
        lines = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            "<title>The network: frozen and trained parts, from image and words to a panoptic map</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0.6 L7.5,4 L0,7.4 z" fill="{theme.muted}"/></marker>',
            f"<style>{style}</style></defs>",
            f'<rect width="{width}" height="{height}" fill="{theme.paper}"/>',
        )
        return "\n".join([*lines, *self.parts, "</svg>\n"])


def draw_architecture(folder: Path) -> list[Path]:
    """Write both variants to ``folder``."""
    paths = []
    for theme in THEMES:
        drawing = Drawing(theme)
        _image_networks(drawing)
        _words_and_classes(drawing)
        _legend(drawing)
        paths.append(folder / f"architecture{theme.suffix}.svg")
        paths[-1].write_text(drawing.svg())
    return paths


def _image_networks(d: Drawing) -> None:
    middle = _ROW + 48
    _landscape(d, (14, middle - 32, 84, 64), segments=False)
    d.text(56, middle + 52, "image", 13, "name")
    d.box((134, 24, 184, 66), "CLIP image encoder", ["image embedding"], _FROZEN)
    d.box((356, 24, 160, 66), "Implicit captioner", ["to a text embedding"], _TRAINED)
    _diffusion(d, (134, _ROW, 346, 96))
    d.box((526, _ROW, 112, 96), "Projections", ["one pyramid,", "strides 4 to 32"], _TRAINED)
    d.box((668, _ROW, 122, 96), "Pixel decoder", ["deformable", "attention"], _TRAINED)
    d.box((820, _ROW, 126, 96), "Mask decoder", ["100 queries"], _TRAINED)
    d.arrow((98, middle), (134, middle))
    d.arrow((114, middle), (114, 57), (134, 57))
    d.arrow((318, 57), (356, 57))
    d.arrow((114, middle), (114, 496), (597, 496), (597, 474))  # to masked CLIP
    d.arrow((436, 90), (436, _ROW))
    d.text(446, 130, "conditioning", at="start")
    d.arrow((480, middle), (526, middle))
    d.text(503, middle - 24, "eight", 12)
    d.text(503, middle - 9, "taps", 12)
    d.arrow((638, middle), (668, middle))
    d.arrow((790, middle), (820, middle))


def _diffusion(d: Drawing, box: Box) -> None:
    x, y, width, _ = box
    d.tinted(box, _FROZEN)
    d.text(x + width / 2, y + 25, "Latent diffusion model", 14, "name")
    parts = (
        ((14, 42, 106, 42), "encoder"),
        ((166, 34, 166, 26), "UNet, one step"),
        ((166, 65, 166, 26), "decoder"),
    )
    for (left, top, wide, high), name in parts:
        box = (x + left, y + top, wide, high)
        d.shape(box, d.theme.paper, d.theme.series[_FROZEN], 6, 'stroke-width="1"')
        d.text(x + left + wide / 2, y + top + high / 2 + 5, name, 13, "name")
    for reader in (47, 78):
        d.arrow((x + 120, y + 63), (x + 143, y + 63), (x + 143, y + reader), (x + 166, y + reader))


def _words_and_classes(d: Drawing) -> None:
    top, low = 338, 420
    upper, lower, middle = top + 27, low + 27, top + 68
    for row, word in enumerate(("dog", "park bench", "sky")):
        d.shape((8, top + 4 + 34 * row, 96, 27), d.theme.panel, d.theme.line, 13)
        d.text(56, top + 22 + 34 * row, word)
    d.text(56, top + 126, "any words", 13, "name")
    d.box((134, top, 166, 136), "CLIP text encoder", ["text embeddings"], _FROZEN)
    d.shape((328, top - 34, 456, 182), "none", d.theme.line, 12, 'stroke-width="1.4" stroke-dasharray="5 4"')
    d.text(344, top - 13, "Classifier", 13, "name", "start")
    d.box((344, top, 146, 54), "Text projection", (), _TRAINED)
    d.box((522, top, 150, 54), "Cosine", ["to mask embeddings"])
    d.box((522, low, 150, 54), "Masked CLIP", ["image inside masks"], _FROZEN)
    d.box((702, top, 68, 136), "Fusion")
    d.arrow((104, middle - 13), (134, middle - 13))
    d.arrow((300, upper), (344, upper))
    d.arrow((490, upper), (522, upper))
    d.arrow((300, lower), (522, lower))
    d.arrow((672, upper), (702, upper))
    d.arrow((672, lower), (702, lower))
    d.arrow((770, middle), (838, middle))
    d.arrow((852, _ROW + 96), (852, 280), (597, 280), (597, top - 34))
    d.text(726, 272, "mask embeddings, masks")
    d.arrow((914, _ROW + 96), (914, middle - 34))
    d.text(906, 320, "masks", at="end")
    _landscape(d, (841, middle - 32, 84, 64), segments=True)
    d.text(883, middle + 51, "panoptic map", 13, "name")
    d.text(883, middle + 68, "instances,", 12)
    d.text(883, middle + 83, "semantic map", 12)


def _legend(d: Drawing) -> None:
    notes = ("28 million parameters", "not updated, not in checkpoints")
    for y, kind, name, note in zip((40, 66), (_TRAINED, _FROZEN), ("trained", "frozen"), notes, strict=True):
        d.tinted((616, y - 12, 26, 17), kind, 5)
        d.text(652, y + 1.5, name, 13, "name", "start")
        d.text(722, y + 1.5, note, 12, at="start")


def _landscape(d: Drawing, box: Box, segments: bool) -> None:
    """A little picture, as it is or in segments."""
    x, y, width, height = box
    teal, orange, blue, violet = d.theme.series
    painted = ("#cfe3f5", "#f4c95d", "#8bb174", "#4d7c4a")
    sky, sun, hill, tree = (blue, orange, teal, violet) if segments else painted
    crown = f"M{x + 24},{y + 52} v-10 M{x + 24},{y + 14} l11,28 h-22 z"
    d.parts += [
        '<g clip-path="inset(0 round 8px)">',
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{sky}"/>',
        f'<circle cx="{x + 62:g}" cy="{y + 18:g}" r="9" fill="{sun}"/>',
        f'<path d="M{x},{y + 46} q22,-14 44,-4 t40,-2 V{y + height} H{x} z" fill="{hill}"/>',
        f'<path d="{crown}" fill="{tree}" stroke="{tree}" stroke-width="3"/>',
        "</g>",
    ]
    d.shape(box, "none", d.theme.muted, 8, 'stroke-width="1"')
