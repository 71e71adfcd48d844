"""Draw the pictures of the documentation from the demo's run: ``make pictures``."""

from __future__ import annotations

import argparse
from pathlib import Path

from odise_pl.errors import UserError, report_user_errors
from scripts.docs.browser import find_browser, take_app, take_tensorboard
from scripts.docs.plots import draw_curves, draw_tables
from scripts.docs.style import DARK, LIGHT, in_dark

IMAGES = Path("docs/images")
FIGURES = Path("docs/figures/small_world.json")
_EXAMPLE_WORDS = "rocket, bird, tree, sky:stuff, sea:stuff, grass:stuff"


def draw_pictures(run: Path, shards: Path, folder: Path) -> list[Path]:
    """Draw every picture.

    Args:
        run: folder of the demo's run.
        shards: folder of the demo's data sets.
        folder: of the pictures.

    Raises:
        UserError: the run, its data or the browser is missing.
    """
    checkpoint = run / "checkpoints" / "last.ckpt"
    for path in (checkpoint, run / "tensorboard", shards / "toy_open" / "dataset.json"):
        if not path.exists():
            raise UserError(
                f"{path} is missing: make demo, or name the demo's folders with --run and --shards"
            )
    find_browser()
    folder.mkdir(parents=True, exist_ok=True)
    drawing = (IMAGES / f"architecture{LIGHT.suffix}.svg").read_text()  # edit this one
    dark = folder / f"architecture{DARK.suffix}.svg"
    dark.write_text(in_dark(drawing))
    paths = [dark, *draw_curves(run, folder), *draw_tables(FIGURES, folder)]
    return [*paths, take_tensorboard(run, folder), *_draw_scenes(checkpoint, shards, folder)]


def _draw_scenes(checkpoint: Path, shards: Path, folder: Path) -> list[Path]:
    from odise_pl import Segmenter
    from scripts.docs.clusters import draw_kmeans
    from scripts.docs.scenes import Gallery, draw_hero, draw_open_set, draw_words

    segmenter = Segmenter.from_pretrained(checkpoint, device="cpu")
    gallery = Gallery(segmenter, shards / "toy_open")
    example = folder / "example.png"  # for the first command of the quick start
    gallery.best().original.save(example)
    square = (scene for scene in gallery.by_quality() if scene.original.width == scene.original.height)
    scenes = [draw(gallery, folder) for draw in (draw_hero, draw_words, draw_open_set)]
    app = take_app(segmenter, example, _EXAMPLE_WORDS, folder)
    return [example, *scenes, draw_kmeans(next(square).original, folder), app]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the demo's run")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of its data sets")
    options = parser.parse_args()
    print(*draw_pictures(options.run.resolve(), options.shards, IMAGES), sep="\n")


if __name__ == "__main__":
    with report_user_errors():
        main()
