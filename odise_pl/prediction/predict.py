"""Pictures in, files of segments out."""

from __future__ import annotations

import io
import json
import sys
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
from odise_pl.evaluation.coco_results import panoptic_annotation
from odise_pl.files import write_bytes, write_text
from odise_pl.prediction.drawing import paint
from odise_pl.prediction.pictures import find_images
from odise_pl.prediction.segmenter import Segmenter, load_segmenter
from odise_pl.runs.checks import unwritable
from odise_pl.structures import Prediction
from odise_pl.vocabulary import Vocabulary, load_vocabulary


def predict(
    checkpoint: Path,
    pictures: Sequence[str],
    words: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> list[str]:
    """Segment pictures, write the results and print what each picture shows.

    Args:
        checkpoint, settings, device: see :func:`load_segmenter`.
        pictures: see :func:`find_images`.
        words: see :func:`load_vocabulary`.
        out: folder of the results.

    Returns:
        why pictures could not be read; the others have their results.

    Raises:
        UserError: something is wrong that concerns all pictures; found before the network loads, if possible.
    """
    # large pictures are what users have; far larger ones Pillow refuses
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for stream in (sys.stdout, sys.stderr):  # the terminal may lack characters of a name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    images = find_images(pictures)
    if (refused := unwritable(out)) is not None:
        raise SettingError(f"--out {out}: {refused}")
    vocabulary = load_vocabulary(words, one_word=True)
    segmenter = load_segmenter(checkpoint, settings, device)
    unread: list[str] = []  # not the errors, which hold what was read
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
    """What an image shows, in words; ``result`` is the path of the results but for their endings."""
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
        prediction: of it.
        vocabulary: that it was made with.
        folder: made if it is not there.
        name: of the files.

    Returns:
        what the JSON holds: the segments with their class names, scores, areas and boxes.

    Raises:
        OSError: the folder cannot be written; every file is there whole, or as it was.
    """
    annotation, ids = panoptic_annotation(prediction.panoptic, vocabulary, 0, f"{name}_ids.png")
    names = {category.id: category.name for category in vocabulary.categories}
    segments = [{"name": names[s["category_id"]], **s} for s in annotation["segments_info"]]
    content = {"file_name": annotation["file_name"], "segments": segments}
    folder.mkdir(parents=True, exist_ok=True)
    picture = image.copy()
    paint(picture, prediction.panoptic, vocabulary.names)
    shown = io.BytesIO()
    # a photo's PNG gets hardly smaller in six times as long
    picture.save(shown, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    write_bytes(folder / f"{name}_segments.png", shown.getvalue())
    write_bytes(folder / f"{name}_ids.png", encode_ids(ids))
    write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return content
