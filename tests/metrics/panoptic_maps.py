"""Random panoptic maps, real ones, and predictions made of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from odise_pl.structures import Instances, PanopticSegmentation, Segment

NUM_CLASSES = 5
ISTHING = (True, True, False, False, True)
BIG_IDS = st.one_of(st.integers(1, 60), st.integers(2**16, 2**24 + 2**20), st.integers(2**31, 2**40))


def segmentation(ids: np.ndarray, segments: list[Segment]) -> PanopticSegmentation:
    return PanopticSegmentation(torch.from_numpy(np.ascontiguousarray(ids)), tuple(segments))


@st.composite
def label_maps(draw: st.DrawFn, height: int, width: int, labels: int) -> np.ndarray:
    """Rectangles of labels 0..labels painted over void: overlaps, runs, split and hidden segments."""
    ids = np.zeros((height, width), dtype=np.int64)
    for _ in range(draw(st.integers(0, 8))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        ids[top:bottom, left:right] = draw(st.integers(0, labels))
    return ids


@st.composite
def panoptic_pairs(draw: st.DrawFn, crowds: bool = True) -> tuple[PanopticSegmentation, PanopticSegmentation]:
    """A prediction that resembles its truth: ids of any size, crowds, void, absent classes, empty maps."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    truth = draw(label_maps(height, width, 6))
    if draw(st.booleans()):
        prediction = np.where(
            draw(label_maps(height, width, 1)) > 0, draw(label_maps(height, width, 6)), truth
        )
    else:
        prediction = draw(label_maps(height, width, 6))
    categories = draw(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=6, max_size=6))
    others = draw(st.one_of(st.just(categories), st.lists(st.integers(0, 1), min_size=6, max_size=6)))
    crowd = draw(st.lists(st.booleans(), min_size=6, max_size=6)) if crowds else [False] * 6
    return (
        _with_ids(draw, prediction, others, [False] * 6),
        _with_ids(draw, truth, categories, crowd),
    )


def _with_ids(
    draw: st.DrawFn, labels: np.ndarray, categories: list[int], crowd: list[bool]
) -> PanopticSegmentation:
    ids = draw(st.lists(BIG_IDS, min_size=6, max_size=6, unique=True))
    table = np.array([0, *ids])
    segments = [
        Segment(id=ids[i], category=categories[i], isthing=ISTHING[categories[i]], iscrowd=crowd[i])
        for i in draw(st.permutations(range(6)))
        if (labels == i + 1).any()
    ]
    return segmentation(table[labels], segments)


def semantic_map(truth: PanopticSegmentation, fill: int = 0) -> torch.Tensor:
    """The class of each pixel's segment, ``fill`` where it has none."""
    classes = torch.full(truth.ids.shape, fill, dtype=torch.int64)
    for segment in truth.segments:
        classes[truth.ids == segment.id] = segment.category
    return classes


def perfect_instances(truth: PanopticSegmentation) -> Instances:
    """Every thing but the crowds, found exactly and with full confidence."""
    things = [s for s in truth.segments if s.isthing and not s.iscrowd]
    height, width = truth.ids.shape
    masks = [truth.ids == s.id for s in things]
    return Instances(
        labels=torch.tensor([s.category for s in things], dtype=torch.int64),
        scores=torch.ones(len(things)),
        masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
    )


def shifted(truth: PanopticSegmentation, rows: int = 4, columns: int = 9) -> PanopticSegmentation:
    """A plausible wrong prediction: the truth moved, its crowds as plain segments, the hidden ones gone."""
    ids = torch.roll(truth.ids, (rows, columns), (0, 1))
    seen = set(np.unique(ids.numpy()).tolist())
    return PanopticSegmentation(ids, tuple(replace(s, iscrowd=False) for s in truth.segments if s.id in seen))


@dataclass(frozen=True)
class CocoMini:
    truths: dict[int, PanopticSegmentation]
    isthing: tuple[bool, ...]
    names: tuple[str, ...]


def coco_mini_root() -> Path:
    """The folder of real COCO images; skips the test when it is absent."""
    default = Path(__file__).parents[2].parent / "shared" / "coco_mini"
    root = Path(os.environ.get("ODISE_COCO_MINI", default))
    if not (root / "annotations").is_dir():
        pytest.skip(f"no real COCO maps at {root}: set ODISE_COCO_MINI to a COCO panoptic folder")
    return root


def read_coco_mini(count: int) -> CocoMini:
    """The first maps of the validation split."""
    root = coco_mini_root() / "annotations"
    content = json.loads((root / "panoptic_val2017.json").read_text())
    categories = {c["id"]: i for i, c in enumerate(content["categories"])}
    isthing = tuple(bool(c["isthing"]) for c in content["categories"])
    truths = {}
    for annotation in content["annotations"][:count]:
        with Image.open(root / "panoptic_val2017" / annotation["file_name"]) as image:
            rgb = np.asarray(image.convert("RGB")).astype(np.int32)
        labels = [categories[s["category_id"]] for s in annotation["segments_info"]]
        segments = [
            Segment(s["id"], label, isthing[label], bool(s["iscrowd"]))
            for s, label in zip(annotation["segments_info"], labels, strict=True)
        ]
        ids = rgb @ np.array([1, 256, 65536], dtype=np.int32)
        truths[annotation["image_id"]] = segmentation(ids, segments)
    return CocoMini(truths, isthing, tuple(c["name"] for c in content["categories"]))
