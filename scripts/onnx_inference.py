"""Segment a picture with a network from ``odise export``: NumPy, Pillow and onnxruntime, without PyTorch.

python scripts/onnx_inference.py net.onnx photo.jpg
python scripts/onnx_inference.py net.onnx photo.jpg --embeddings words.npz --out segments.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]
Segment = tuple[int, int, float]  # id in the map, class, score


def network_input(picture: Image.Image, height: int, width: int) -> Array:
    """A picture resized to the network's fixed size: float32 [1, 3, H, W] in 0..1."""
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / np.float32(255))


def resize(mask: Array, height: int, width: int) -> Array:
    """Bilinear, as PyTorch's ``interpolate``: [h, w] to [height, width]."""
    for axis, length in enumerate((height, width)):
        last = mask.shape[axis] - 1
        places = np.maximum((np.arange(length) + 0.5) * mask.shape[axis] / length - 0.5, 0)
        first = np.minimum(places.astype(int), last)
        share = np.expand_dims((places - first).astype(np.float32), 1 - axis)
        after = np.take(mask, np.minimum(first + 1, last), axis)
        mask = np.take(mask, first, axis) * (1 - share) + after * share
    return mask


def panoptic(
    class_scores: Array,
    mask_logits: Array,
    isthing: list[bool],
    canvas: tuple[int, int],
    size: tuple[int, int],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Array, list[Segment]]:
    """The panoptic map int32 [H, W] of ``size``, and its segments.

    Args:
        class_scores: [Q, K + 1], the last for no object.
        mask_logits: [Q, h, w].
        isthing: one flag per class.
        canvas: height and width of the network's input.
        size: of the picture.
        object_threshold, overlap_threshold: see the export's metadata.
    """
    scores, labels = class_scores.max(1), class_scores.argmax(1)
    kept = np.flatnonzero((labels != len(isthing)) & (scores > object_threshold))
    best, owner, covered = np.full(size, -1, np.float32), np.full(size, -1), np.zeros(size, bool)
    claimed = {}
    for query in kept:  # one mask at a time, because all of a large picture would take gigabytes
        logits = resize(resize(mask_logits[query], *canvas), *size)
        probability = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        better = scores[query] * probability > best
        best[better] = scores[query] * probability[better]
        owner[better] = query
        covered[better] = probability[better] >= 0.5
        claimed[query] = np.count_nonzero(probability >= 0.5)
    ids, stuff = np.zeros(size, np.int32), dict[int, int]()
    segments: list[Segment] = []
    for query in kept:
        won, inside = owner == query, (owner == query) & covered
        if not inside.any() or won.sum() / claimed[query] < overlap_threshold:
            continue
        label = int(labels[query])
        if isthing[label] or label not in stuff:  # stuff segments of one class are merged
            stuff[label] = len(segments) + 1
            segments.append((stuff[label], label, float(scores[query])))
        ids[inside] = stuff[label]
    return ids, segments


def dense(
    maps: Array, logits: bool, penalty: list[float], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[Array, list[Segment]]:
    """A segment for each class that is best in some pixel: int32 [H, W] of ``size``, and the segments.

    Args:
        maps: [K, h, w] of the classes, logits or scores.
        logits: which of them.
        penalty: of each class, subtracted from its probabilities before they are compared.
        canvas: height and width of the network's input.
        size: of the picture.
    """

    def full() -> Iterator[Array]:  # one at a time, as above
        return (resize(resize(one, *canvas), *size) for one in maps)

    total = reduce(np.logaddexp, full()) if logits else None
    best, score, owner = np.full(size, -np.inf), np.zeros(size), np.zeros(size, int)
    for label, one in enumerate(full()):
        probability = one if total is None else np.exp(one - total)
        better = probability - penalty[label] > best
        best[better] = probability[better] - penalty[label]
        score[better], owner[better] = probability[better], label
    present, ids = np.unique(owner, return_inverse=True)
    ids = ids.reshape(size) + 1
    segments = [(i, int(label), float(score[ids == i].mean())) for i, label in enumerate(present, 1)]
    return ids.astype(np.int32), segments


def segment(
    session: onnxruntime.InferenceSession, picture: Image.Image, words: dict[str, Array]
) -> tuple[Array, list[Segment], list[str]]:
    """The panoptic map of a picture, its segments, and the names of the classes.

    Dense methods have one segment for each class.

    Args:
        session: an exported network.
        picture: RGB.
        words: arrays of an embeddings file; none if the words are constants of the network.
    """
    image, *text = session.get_inputs()
    if image.name != "image":
        raise SystemExit("error: this is a head, from odise export --head-only: its input is no picture")
    if {one.name for one in text} - words.keys() or (words and not text):
        way_out = "takes words: give --embeddings" if text else "has its own words: leave out --embeddings"
        raise SystemExit(f"error: this network {way_out}")
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    about = words or metadata
    names, isthing, penalty = (list(about[key]) for key in ("names", "isthing", "penalty"))
    canvas, size = tuple(image.shape[2:]), (picture.height, picture.width)
    inputs = {image.name: network_input(picture, *canvas)} | {one.name: words[one.name] for one in text}
    outputs = [one.name for one in session.get_outputs()]
    found = session.run(None, inputs)
    if outputs == ["class_scores", "mask_logits"]:
        class_scores, mask_logits = found
        thresholds = {name: metadata[name] for name in ("object_threshold", "overlap_threshold")}
        ids, segments = panoptic(class_scores, mask_logits, isthing, canvas, size, **thresholds)
    else:
        ids, segments = dense(found[0], outputs == ["pixel_logits"], penalty, canvas, size)
    return ids, segments, names


def main() -> None:
    """Print the segments of a picture and paint them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", help="from odise export")
    parser.add_argument("picture")
    parser.add_argument("--embeddings", type=Path, help="words from odise export, if they are an input")
    parser.add_argument("--out", default="segments.png", help="picture to write (default: %(default)s)")
    options = parser.parse_args()
    picture = ImageOps.exif_transpose(Image.open(options.picture)).convert("RGB")
    words = dict(np.load(options.embeddings)) if options.embeddings else {}
    session = onnxruntime.InferenceSession(options.network)
    ids, segments, names = segment(session, picture, words)
    for number, label, score in segments:
        print(f"{names[label]} ({score:.2f}): {np.count_nonzero(ids == number)} pixels")
    colours = np.random.default_rng(0).integers(40, 256, (len(segments) + 1, 3), dtype=np.uint8)
    colours[0] = 0
    Image.blend(picture, Image.fromarray(colours[ids]), 0.6).save(options.out)


if __name__ == "__main__":
    main()
