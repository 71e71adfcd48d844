"""Segment images in your own words.

``python -m odise_pl.prediction.command CKPT IMAGE... --names dog,grass:stuff``
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from odise_pl.checkpoints.io import load_weights
from odise_pl.checkpoints.reading import describe
from odise_pl.data.images import encode_ids, read_image, upright
from odise_pl.data.records import DataError
from odise_pl.data.transforms import EvalResize, image_tensor
from odise_pl.errors import SettingError
from odise_pl.evaluation.coco_results import panoptic_annotation
from odise_pl.files import write_bytes, write_text
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.odise import InferenceClasses, Odise, pad_images
from odise_pl.prediction.drawing import paint
from odise_pl.prediction.pictures import find_images
from odise_pl.runs.folders import unwritable
from odise_pl.runs.settings import adopt, check_weights, clear_errors
from odise_pl.structures import Prediction
from odise_pl.vocabulary import Vocabulary, load_vocabulary

_TRAINING = "coco_panoptic"  # of checkpoints that do not say what they were trained on


@dataclass(frozen=True)
class Segmenter:
    """A trained network that segments images by words.

    Attributes:
        model: the network, in eval mode.
        training: classes that it was trained on; CLIP has less of a say about them.
        resize: brings images to the size that the network was evaluated at.
    """

    model: Odise
    training: Vocabulary
    resize: EvalResize
    _classes: dict[tuple[Vocabulary, torch.device], InferenceClasses] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def segment(self, image: Image.Image, vocabulary: Vocabulary | str | Sequence[str]) -> NetworkPrediction:
        """Panoptic map, instances and class map at the size of the image as viewers show it.

        They are computed when they are asked for. Of a large image, instances take the most memory: a byte
        for each pixel of each.

        Args:
            image: see :func:`~odise_pl.data.images.upright`; one of 16 bits a channel as ``Image.open``
                returns it, because Pillow drops eight of them when it reads the pixels.
            vocabulary: what is looked for; see :func:`~odise_pl.vocabulary.load_vocabulary`. Its names are
                embedded when it differs from that of the call before.

        Raises:
            VocabularyError: it is empty, or a name comes twice.
            TypeError: it is no Pillow image.
            DataError: it cannot be read as RGB.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is of {type(image).__name__}, not of PIL.Image: Image.open(PATH) reads one, "
                f"Image.fromarray(ARRAY) makes one of uint8 [H, W, 3]"
            )
        device = self.model.clip.mean.device
        classes = self._embedded(load_vocabulary(vocabulary, one_word=True), device)
        image = upright(image)
        images, valid = pad_images([image_tensor(self.resize.image(image))])
        sizes = (valid, [(image.height, image.width)])
        (prediction,) = self.model.predict(images.to(device), *sizes, classes)
        return prediction.to("cpu")

    def _embedded(self, vocabulary: Vocabulary, device: torch.device) -> InferenceClasses:
        key = (vocabulary, device)
        if key not in self._classes:
            self._classes.clear()
            self._classes[key] = self.model.prepare(vocabulary, self.training)
        return self._classes[key]


def load_segmenter(
    checkpoint: Path | str, overrides: Sequence[str] = (), conf: Path = Path("conf"), device: str = "auto"
) -> Segmenter:
    """The network of a checkpoint.

    Args:
        checkpoint: of a run, or an official release.
        overrides: ``KEY=VALUE`` of the configuration, e.g. ``clip.weights=FILE``; they win over what the
            checkpoint says of itself.
        conf: the configuration folder of the repository.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        UserError: something is missing or does not fit together.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise SettingError(f"{checkpoint} is not there; name the checkpoint of a run")
    description = describe(checkpoint)
    config = _composed(conf, overrides)
    if description.record is not None:
        config = adopt(config, description.record, overrides, str(checkpoint))
    if not config.captioner.get("on_the_fly", True):
        raise SettingError(
            "captioner=blip reads captions from shards, which images do not have: add "
            "captioner.on_the_fly=true to caption them here"
        )
    check_weights(config)
    # what is random in an untrained backbone is drawn as in training
    lightning.seed_everything(config.seed, verbose=False)
    model: Odise = instantiate(config.model)
    load_weights(model, checkpoint)
    return Segmenter(
        model.eval().to(_device(device)),
        description.vocabulary or load_vocabulary(_TRAINING),
        EvalResize(config.data.eval_short_side, config.data.eval_long_side),
    )


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise SettingError(f"--device {name}: no GPU that this PyTorch can use; leave it out or say cpu")
    return name


def _composed(conf: Path, overrides: Sequence[str]) -> DictConfig:
    if not (conf / "evaluate.yaml").is_file():
        raise SettingError(f"--conf {conf} is not the conf folder of the repository")
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            # nothing is read from a data set, and no run is made
            return compose("evaluate", ["run=predict", "run_dir=.", "data.val=null", *overrides])
    except HydraException as error:
        raise SettingError(f"{' '.join(overrides)}: {error}") from error


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


def run(options: argparse.Namespace) -> int:
    """Segment every image and say what is on it.

    Returns:
        exit status: 1 if an image could not be read; the others have their results.

    Raises:
        UserError: something is wrong that concerns all images; found before the network loads, if it can be.
    """
    images = find_images(options.images)
    refused = unwritable(options.out)
    if refused is not None:
        raise SettingError(f"--out {options.out}: {refused}")
    vocabulary = load_vocabulary(options.names, one_word=True)
    segmenter = load_segmenter(options.checkpoint, options.overrides, options.conf, options.device)
    unread: list[str] = []  # not the errors, which hold what was read
    try:
        for result, path in images.items():
            try:
                shown = _segment_file(segmenter, path, vocabulary, options.out / result)
                print(f"{path}: {shown}", flush=True)
            except DataError as error:
                unread.append(f"error: {error}")
            except OSError as error:
                raise SettingError(f"--out {options.out}: {error}") from error
    finally:
        sys.stderr.writelines(f"{line}\n" for line in unread)
    if len(unread) < len(images):
        print(f"written: {options.out}/NAME_segments.png, NAME_ids.png, NAME.json")
    return 1 if unread else 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m odise_pl.prediction.command", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="of a run, or an official release")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="pictures, folders of them, or patterns such as '*.jpg'"
    )
    parser.add_argument(
        "--names",
        required=True,
        help="what to look for: names with commas between, ':stuff' after those of regions without a count; "
        "a list with synonyms, '[\"dog,puppy\", grass:stuff]'; a file with a class a line, or its text, "
        '"$(cat FILE)", where commas stand between synonyms; coco_panoptic and others',
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default predictions)")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="configuration folder (default conf)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="of the configuration, e.g. model=odise_label for an official release; may be repeated",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, or ends the program with what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # large pictures are what users have; far larger ones Pillow refuses
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with clear_errors():
        try:
            return run(_parser().parse_args(arguments))
        except KeyboardInterrupt:
            print("stopped: the results so far are whole", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
