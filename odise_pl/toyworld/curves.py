"""How the frozen models learned, as a picture: ``python -m odise_pl.toyworld.curves runs/pretrain``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odise_pl.arguments import ends_with_message
from odise_pl.data.records import DataError

# What is drawn of each model: name in the log, and what it says.
CURVES = {
    "clip": ("right", "CLIP: share of captions found\namong those of a batch"),
    "vae": ("psnr", "VAE: peak signal-to-noise ratio (dB)\nof pictures in training"),
    "unet": ("error", "UNet: squared error of the noise,\nmean over all steps"),
}
_SMOOTH = 25  # values in a running mean

Curve = tuple[np.ndarray, np.ndarray]


def read_curve(folder: Path, name: str) -> Curve:
    """Steps and values of one scalar in the TensorBoard logs of a folder, in the order of steps.

    A step that was logged twice, before and after an interruption, counts once.

    Raises:
        DataError: nothing of that name was logged.
    """
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    if name not in log.Tags()["scalars"]:
        raise DataError(f"{folder} holds a log without {name}: of something else, or too short")
    values = {event.step: event.value for event in log.Scalars(name)}
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def draw(folder: Path, path: Path) -> list[str]:
    """Draw the curves of all models that have a log, if there is one; returns their names."""
    found = [model for model in CURVES if list((folder / model).glob("events.out.tfevents.*"))]
    if not found:
        return found
    figure = Figure(figsize=(4 * len(found), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, model in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        name, title = CURVES[model]
        steps, values = read_curve(folder / model, name)
        window = min(_SMOOTH, len(values))
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        axes.plot(steps, values, color="0.8", linewidth=0.5)
        axes.plot(steps[window - 1 :], smooth)
        axes.set_title(title, fontsize="small")
        axes.set_xlabel("step")
    figure.savefig(path, dpi=90)
    return found


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.curves", description=__doc__)
    parser.add_argument("work", type=Path, help="folder that pre-training worked in")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    options = parser.parse_args(arguments)
    found = draw(options.work, options.out)
    if not found:
        raise DataError(f"{options.work} holds no log of {', '.join(CURVES)}: run pretrain first")
    print(f"{options.out}: {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
