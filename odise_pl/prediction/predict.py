"""Segment pictures and write the results to files."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from odise_pl.data.images import read_image
from odise_pl.data.label_maps import encode_ids
from odise_pl.data.records import DataError
from odise_pl.errors import SettingError
from odise_pl.evaluation.writer import panoptic_annotation
from odise_pl.files import write_bytes, write_text
from odise_pl.prediction.drawing import paint
from odise_pl.prediction.pictures import find_images
from odise_pl.prediction.segmenter import Segmenter, load_segmenter
from odise_pl.structures import Prediction
from odise_pl.vocabulary import Vocabulary, VocabularyError, load_vocabulary


def predict(
    checkpoint: Path,
    pictures: Sequence[str],
    words: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> list[str]:
    """Segment pictures, write the results and print the segments of each picture.

    Args:
        checkpoint, settings, device: see :func:`load_segmenter`.
        pictures: see :func:`find_images`.
        words: see :func:`load_vocabulary`.
        out: folder of the results.

    Returns:
        an error message for each skipped picture.

    Raises:
        UserError: an argument is wrong.
    """
    # Pillow warns of large pictures and refuses very large ones
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    images = find_images(pictures)
    try:
        vocabulary = load_vocabulary(words, one_word=True)
    except VocabularyError as error:
        raise SettingError(f"--words: {error}") from error
    segmenter = load_segmenter(checkpoint, settings, device)
    unread: list[str] = []  # messages, because the errors would keep the images in memory
    for result, path in images.items():
        try:
            print(f"{path}: {_segment_file(segmenter, path, vocabulary, out / result)}", flush=True)
        except DataError as error:
            unread.append(str(error))
        except OSError as error:
            raise SettingError(f"--out {out}: {error}") from error
    if len(unread) < len(images):
        print(f"written: {out}/NAME_segments.png, NAME_ids.png, NAME.json")
    return unread


def _segment_file(segmenter: Segmenter, path: Path, vocabulary: Vocabulary, result: Path) -> str:
    """Write the results of an image to ``result`` plus suffixes; returns its segments in words."""
    image = read_image(path)
    prediction = segmenter.segment(image, vocabulary)
    content = write_prediction(image, prediction, vocabulary, result.parent, result.name)
    label, score = prediction.best
    found = [f"{s['name']} ({s['score']:.2f})" for s in content["segments"]]
    return ", ".join(found) or (
        f"no segment (best score {score:.2f}: {vocabulary.names[label]}); lower the thresholds to see more: "
        "--set model.inference.object_threshold=... and overlap_threshold"
    )


def write_prediction(
    image: Image.Image, prediction: Prediction, vocabulary: Vocabulary, folder: Path, name: str
) -> dict[str, Any]:
    """Write ``NAME_segments.png`` (to look at), ``NAME_ids.png`` (COCO's panoptic PNG) and ``NAME.json``.

    Args:
        image: RGB, of the size of the prediction.
        prediction: of the image.
        vocabulary: of the prediction.
        folder: created if missing.
        name: of the files.

    Returns:
        the content of the JSON file: segments with class names, scores, areas and boxes.

    Raises:
        OSError: the folder cannot be written.
    """
    annotation, ids = panoptic_annotation(prediction.panoptic, vocabulary, 0, f"{name}_ids.png")
    names = {category.id: category.name for category in vocabulary.categories}
    segments = [{"name": names[s["category_id"]], **s} for s in annotation["segments_info"]]
    content = {"file_name": annotation["file_name"], "segments": segments}
    folder.mkdir(parents=True, exist_ok=True)
    shown = io.BytesIO()
    # stronger compression takes six times as long and saves little
    paint(image, prediction.panoptic, vocabulary.names).save(
        shown, "PNG", compress_level=1, compress_type=zlib.Z_RLE
    )
    write_bytes(folder / f"{name}_segments.png", shown.getvalue())
    write_bytes(folder / f"{name}_ids.png", encode_ids(ids))
    write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return content
