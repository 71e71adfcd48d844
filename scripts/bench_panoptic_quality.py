"""Time panoptic quality against other packages on the same maps, in one run.

    python scripts/bench_panoptic_quality.py --coco ROOT --images 200

ROOT is a folder in COCO's layout (``annotations/panoptic_SPLIT.json`` and its PNG folder); without it
synthetic maps of COCO's size are scored. The prediction is the truth moved by a few pixels. In every round
this project and torchmetrics take one pass each, image by image. vernier and hotcoco are no dependencies and
are left out when absent; the one gets arrays in memory, the other PNG files, which is all it reads. The best
of the rounds is shown.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from odise_pl.metrics.panoptic_quality import PanopticQuality
from odise_pl.structures import PanopticSegmentation, Segment

CHANNELS = np.array([1, 256, 65536], dtype=np.int32)


@dataclass(frozen=True)
class Maps:
    """Predictions and truths of one set of images, and which of the classes are things."""

    predictions: list[PanopticSegmentation]
    truths: list[PanopticSegmentation]
    isthing: tuple[bool, ...]


@dataclass
class Timing:
    """Seconds an image of each round, and the panoptic quality that came out."""

    name: str
    rounds: list[float] = field(default_factory=list)
    pq: float = float("nan")

    @property
    def best(self) -> float:
        return min(self.rounds)


def main() -> None:
    """Measure and print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    maps = read_coco(arguments.coco, arguments.images) if arguments.coco else synthetic(arguments.images)
    in_memory = time_torchmetrics(maps, arguments.rounds)
    if find_spec("vernier"):
        in_memory += time_vernier(maps, arguments.rounds, arguments.threads)
    from_files: list[Timing] = []
    if find_spec("hotcoco"):
        from_files = time_files(maps, arguments.rounds)
    height, width = maps.truths[0].ids.shape
    title = f"{len(maps.truths)} images of about {height}x{width}, torch threads: {arguments.threads}"
    Console().print(report(title, in_memory), report("PNG files to result", from_files) if from_files else "")


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--coco", type=Path, help="folder in COCO's panoptic layout (default: synthetic maps)"
    )
    parser.add_argument("--images", type=int, default=200, help="at most so many images (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the images (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and vernier (default: 1)")
    return parser.parse_args()


def read_coco(root: Path, count: int) -> Maps:
    """Truth of every panoptic split of a COCO folder, and the prediction made of it."""
    truths: list[PanopticSegmentation] = []
    isthing: tuple[bool, ...] = ()
    for path in sorted((root / "annotations").glob("panoptic_*.json")):
        content = json.loads(path.read_text())
        classes = {c["id"]: i for i, c in enumerate(content["categories"])}
        isthing = tuple(bool(c["isthing"]) for c in content["categories"])
        for annotation in content["annotations"][: count - len(truths)]:
            truths.append(
                read_truth(path.with_suffix("") / annotation["file_name"], annotation, classes, isthing)
            )
    if not truths:
        raise SystemExit(f"no panoptic_*.json with annotations in {root / 'annotations'}")
    return Maps([moved(truth) for truth in truths], truths, isthing)


def read_truth(
    png: Path, annotation: dict[str, Any], classes: dict[int, int], isthing: tuple[bool, ...]
) -> PanopticSegmentation:
    """One map of a COCO panoptic annotation."""
    segments = []
    for s in annotation["segments_info"]:
        label = classes[s["category_id"]]
        segments.append(Segment(s["id"], label, isthing[label], bool(s["iscrowd"])))
    return PanopticSegmentation(read_ids(png), tuple(segments))


def read_ids(png: Path) -> Tensor:
    """Segment ids int32 [H, W] of a PNG in COCO's colour code."""
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGBA"))  # four bytes a pixel, to be read as one integer
    return torch.from_numpy(pixels.view("<i4")[..., 0] & 0xFFFFFF)


def synthetic(count: int) -> Maps:
    """Maps of 480x640 with about twenty ragged segments over void, a few of them crowds."""
    rng = np.random.default_rng(0)
    isthing = tuple(label < 80 for label in range(133))
    truths = [synthetic_truth(rng, isthing) for _ in range(count)]
    return Maps([moved(truth) for truth in truths], truths, isthing)


def synthetic_truth(rng: np.random.Generator, isthing: tuple[bool, ...]) -> PanopticSegmentation:
    """Ellipses with ragged borders."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float32)
    ids = np.zeros((480, 640), dtype=np.int32)
    for value in rng.choice(2**24 - 1, 24, replace=False) + 1:
        (y, x), (a, b) = rng.uniform(0, (480, 640)), rng.uniform(20, 200, 2)
        ragged = 1 + 0.15 * np.kron(rng.standard_normal((120, 80)), np.ones((4, 8)))
        ids[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < ragged] = value
    values = np.unique(ids[ids > 0]).tolist()
    labels = rng.choice(len(isthing), len(values), replace=False).tolist()  # so that stuff comes once
    crowds = (rng.random(len(values)) < 0.05).tolist()
    segments = [
        Segment(value, label, isthing[label], crowd and isthing[label])
        for value, label, crowd in zip(values, labels, crowds, strict=True)
    ]
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def moved(truth: PanopticSegmentation) -> PanopticSegmentation:
    """The truth moved by (5, 7) pixels, as a prediction."""
    ids = torch.zeros_like(truth.ids)
    ids[5:, 7:] = truth.ids[:-5, :-7]
    seen = set(np.unique(ids.numpy()).tolist())
    return PanopticSegmentation(ids, tuple(replace(s, iscrowd=False) for s in truth.segments if s.id in seen))


def time_torchmetrics(maps: Maps, rounds: int) -> list[Timing]:
    """This project and torchmetrics on tensors in memory, one image an update."""
    ours, theirs = Timing("odise_pl"), Timing("torchmetrics")
    labels = [
        (class_instance(p), class_instance(t)) for p, t in zip(maps.predictions, maps.truths, strict=True)
    ]
    things = {label for label, thing in enumerate(maps.isthing) if thing}
    for _ in range(rounds):
        our_metric = PanopticQuality(maps.isthing)
        their_metric = TorchmetricsPanopticQuality(
            things, set(range(len(maps.isthing))) - things, allow_unknown_preds_category=True
        )
        images = [([p], [t]) for p, t in zip(maps.predictions, maps.truths, strict=True)]
        ours.rounds.append(elapsed(score, our_metric, images) / len(images))
        theirs.rounds.append(elapsed(score, their_metric, labels) / len(images))
        ours.pq, theirs.pq = our_metric.compute().all.pq, float(their_metric.compute())
    return [ours, theirs]


def score(metric: Metric, images: list[tuple[Any, Any]]) -> None:
    """Update with each pair of prediction and truth, and compute."""
    for prediction, truth in images:
        metric.update(prediction, truth)
    metric.compute()


def class_instance(panoptic: PanopticSegmentation) -> Tensor:
    """The map as torchmetrics wants it: [1, H, W, 2] of class and instance, class -1 for void."""
    values = np.array([0, *(s.id for s in panoptic.segments)])
    table = np.array([[-1, 0], *([s.category, number] for number, s in enumerate(panoptic.segments))])
    order = np.argsort(values)
    slots = order[np.searchsorted(values[order], panoptic.ids.numpy())]
    return torch.from_numpy(table[slots])[None]


def time_vernier(maps: Maps, rounds: int, threads: int) -> list[Timing]:
    """vernier (Rust) on arrays in memory: all of it, and its evaluation alone."""
    import vernier.panoptic as vernier

    logging.disable(logging.INFO)
    whole, alone = Timing("vernier, load and evaluate"), Timing("vernier, evaluate alone")
    truth_maps, prediction_maps = (as_uint32(side) for side in (maps.truths, maps.predictions))
    truth_segments, prediction_segments = (
        segments_by_image(side) for side in (maps.truths, maps.predictions)
    )
    categories = json.dumps(coco_categories(maps.isthing)).encode()
    evaluator = vernier.Evaluator(parity_mode="strict")
    for _ in range(rounds):
        start = time.perf_counter()
        truth = vernier.Dataset.from_arrays(truth_maps, truth_segments, categories)
        prediction = vernier.Predictions.from_arrays(prediction_maps, prediction_segments)
        loaded = time.perf_counter()
        whole.pq = alone.pq = evaluator.evaluate(truth, prediction, num_threads=threads).pq
        end = time.perf_counter()
        whole.rounds.append((end - start) / len(maps.truths))
        alone.rounds.append((end - loaded) / len(maps.truths))
    return [whole, alone]


def as_uint32(side: list[PanopticSegmentation]) -> dict[int, np.ndarray]:
    """Maps by image number, as vernier wants them."""
    return {number: panoptic.ids.numpy().astype(np.uint32) for number, panoptic in enumerate(side)}


def segments_by_image(side: list[PanopticSegmentation]) -> bytes:
    """COCO's segments_info by image number, as JSON."""
    return json.dumps({number: segments_info(panoptic) for number, panoptic in enumerate(side)}).encode()


def segments_info(panoptic: PanopticSegmentation) -> list[dict[str, Any]]:
    """Segments as COCO's panoptic JSON has them."""
    values, areas = np.unique(panoptic.ids.numpy(), return_counts=True)
    area = dict(zip(values.tolist(), areas.tolist(), strict=True))
    return [
        {
            "id": s.id,
            "category_id": s.category + 1,
            "iscrowd": int(s.iscrowd),
            "area": area[s.id],
            "bbox": [0, 0, 1, 1],
        }
        for s in panoptic.segments
    ]


def coco_categories(isthing: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Categories as COCO's panoptic JSON has them."""
    return [
        {"id": label + 1, "name": str(label), "supercategory": "any", "isthing": int(thing)}
        for label, thing in enumerate(isthing)
    ]


def time_files(maps: Maps, rounds: int) -> list[Timing]:
    """hotcoco (Rust, all cores), which reads PNG files only, and this project with Pillow's decoder."""
    from hotcoco.panoptic import PanopticEval

    ours, theirs = Timing("odise_pl and Pillow, 1 core"), Timing("hotcoco, all cores")
    with tempfile.TemporaryDirectory() as name:
        truth, prediction = Path(name, "truth"), Path(name, "prediction")
        write_coco(truth, maps.truths, maps.isthing)
        write_coco(prediction, maps.predictions, maps.isthing)
        for _ in range(rounds):
            metric = PanopticQuality(maps.isthing)
            seconds = elapsed(score_files, metric, maps, prediction, truth)
            ours.rounds.append(seconds / len(maps.truths))
            ours.pq = metric.compute().all.pq
            start = time.perf_counter()
            evaluation = PanopticEval(truth.with_suffix(".json"), prediction.with_suffix(".json"))
            evaluation.evaluate()
            theirs.pq = evaluation.results()["All"]["pq"]
            theirs.rounds.append((time.perf_counter() - start) / len(maps.truths))
    return [ours, theirs]


def write_coco(folder: Path, side: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> None:
    """PNG files in ``folder`` and the JSON beside it."""
    folder.mkdir()
    annotations, images = [], []
    for number, panoptic in enumerate(side):
        height, width = panoptic.ids.shape
        rgb = (panoptic.ids.numpy()[..., None] // CHANNELS % 256).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        annotation = {
            "image_id": number,
            "file_name": f"{number}.png",
            "segments_info": segments_info(panoptic),
        }
        annotations.append(annotation)
    content = {"images": images, "annotations": annotations, "categories": coco_categories(isthing)}
    folder.with_suffix(".json").write_text(json.dumps(content))


def score_files(metric: PanopticQuality, maps: Maps, prediction: Path, truth: Path) -> None:
    """Decode each pair of PNG files and score it."""
    for number, (p, t) in enumerate(zip(maps.predictions, maps.truths, strict=True)):
        decoded = [
            replace(side, ids=read_ids(folder / f"{number}.png"))
            for side, folder in ((p, prediction), (t, truth))
        ]
        metric.update(decoded[:1], decoded[1:])
    metric.compute()


def elapsed(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def report(title: str, timings: list[Timing]) -> Table:
    """One row a contender; the ratio is its time over that of the first."""
    table = Table(title=title)
    for column in ("", "ms an image", "times ours", "PQ"):
        table.add_column(column, justify="left" if not column else "right")
    for timing in timings:
        ratio = timing.best / timings[0].best
        table.add_row(timing.name, f"{1000 * timing.best:.3f}", f"{ratio:.2f}", f"{timing.pq:.6f}")
    return table


if __name__ == "__main__":
    main()
