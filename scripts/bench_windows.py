"""Processor time and memory of evaluating one image, by its number of windows.

``python -m scripts.bench_windows`` builds the published label model with random weights and evaluates one
image of each size on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from odise_pl.models.backbones.sliding_window import plan_windows
from odise_pl.vocabulary import load_vocabulary
from scripts.figures import write_figures
from scripts.steps import peak_gib, published

SIZES = ("512x512", "1024x1024", "1024x1344", "1024x2560")


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="HEIGHTxWIDTH")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = published(512).model.eval()
    classes = model.prepare(load_vocabulary("coco_panoptic"), None)
    rows = []
    for name in options.sizes:
        height, width = map(int, name.split("x"))
        size = height, width
        windows = len(plan_windows(*size, model.backbone.window))
        start = time.process_time()
        with torch.inference_mode():
            pyramid = model.backbone(torch.rand(1, 3, *size))
        frozen = time.process_time() - start
        del pyramid
        model.predict(torch.rand(1, 3, *size), [size], [size], classes)
        whole = time.process_time() - start - frozen
        print(
            f"{name}: {windows} windows, features {frozen:.0f} s, "
            f"whole evaluation {whole:.0f} s, peak {peak_gib():.1f} GiB"
        )
        row = {
            "name": name,
            "windows": windows,
            "features_s": frozen,
            "whole_s": whole,
            "peak_gib": peak_gib(),
        }
        rows.append(row)
    if options.json:
        what = "Processor time and peak memory of an evaluated image: label model, float32, one thread."
        write_figures(options.json, what, {"rows": rows})


if __name__ == "__main__":
    main()
