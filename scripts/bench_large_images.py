"""Processor time and memory of post-processing large images, from small masks to results.

``python -m scripts.bench_large_images`` measures each case in a process of its own, with one thread and
random masks: predictions as files (reading the picture, panoptic map, pictures and JSON written), and the
class map of an evaluation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from odise_pl.data.images import read_image
from odise_pl.models.inference import InferenceSettings, predict
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.structures import Size
from odise_pl.vocabulary import load_vocabulary
from scripts.steps import peak_gib

WORDS = ["dog", "cat", "tree", "house", "car", "sky:stuff", "grass:stuff", "road:stuff"]


@dataclass(frozen=True)
class Case:
    """Sizes of canvas, valid part and result; queries; words."""

    queries: int
    canvas: Size
    valid: Size
    output: Size
    words: str | list[str]


TOY, PUBLISHED = ((128, 192), (128, 171)), ((1024, 1408), (1024, 1365))
CASES = {
    "12 MP, 16 queries, 8 words": Case(16, *TOY, (3000, 4000), WORDS),
    "48 MP, 16 queries, 847 words": Case(16, *TOY, (6000, 8000), "ade20k_847"),
    "12 MP, 100 queries, 8 words": Case(100, *PUBLISHED, (3000, 4000), WORDS),
    "48 MP, 100 queries, 847 words": Case(100, *PUBLISHED, (6000, 8000), "ade20k_847"),
}


def random_logits(case: Case, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits, and masks at stride 4 with regions of some cells."""
    generator = torch.Generator().manual_seed(0)
    height, width = (side // 4 for side in case.canvas)
    coarse = 8 * torch.randn(1, case.queries, height // 8, width // 8, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return 4 * torch.randn(case.queries, classes + 1, generator=generator), masks


def measure(case: Case, way: str) -> str:
    """Seconds of processor time, peak memory, and what the process held before."""
    vocabulary = load_vocabulary(case.words)
    logits = random_logits(case, len(vocabulary))
    settings = InferenceSettings(overlap_threshold=0.0)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        noise = np.random.default_rng(0).integers(0, 255, (75, 100, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(case.output[::-1]).save(photo)
        before = peak_gib()
        start = time.process_time()
        image = read_image(photo)
        found = predict(*logits, vocabulary.isthing, settings, case.canvas, case.valid, case.output)
        if way == "semantic":
            assert found.semantic.shape == case.output
        else:
            Segmentation(image, vocabulary, found).save(folder, photo.stem)
        seconds = time.process_time() - start
    return f"{seconds:7.1f} s, peak {peak_gib():.2f} GiB, {before:.2f} before"


def main() -> None:
    """Measure one case in one way, or start a process for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--way", choices=("predict", "semantic"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case and options.way:
        print(f"{options.case}, {options.way}: {measure(CASES[options.case], options.way)}", flush=True)
        return
    for name in [options.case] if options.case else CASES:
        for way in [options.way] if options.way else ("predict", "semantic"):
            command = [sys.executable, "-m", "scripts.bench_large_images", "--case", name, "--way", way]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
