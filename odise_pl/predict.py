"""Segment images in one's own words: ``python -m odise_pl.predict CKPT IMAGE... --names dog,grass:stuff``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from odise_pl.checkpoint import load_weights
from odise_pl.configuration import adopt, check_weights, clear_errors
from odise_pl.data.images import encode_ids, read_image, upright
from odise_pl.data.transforms import EvalResize, image_tensor
from odise_pl.drawing import overlay
from odise_pl.errors import SettingError
from odise_pl.evaluation.coco_results import panoptic_annotation
from odise_pl.lightning_module import describe
from odise_pl.limits import bad_numbers
from odise_pl.odise import Odise, pad_images
from odise_pl.places import unwritable
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

    def segment(self, image: Image.Image, vocabulary: Vocabulary | str | Sequence[str]) -> Prediction:
        """Panoptic map, instances and class map at the size of the image as viewers show it.

        Args:
            image: see :func:`~odise_pl.data.images.upright`.
            vocabulary: what is looked for; see :func:`~odise_pl.vocabulary.load_vocabulary`.

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
        classes = self.model.prepare(load_vocabulary(vocabulary), self.training)
        image = upright(image)
        pixels = image_tensor(self.resize.image(image))
        images, valid = pad_images([pixels])
        device = self.model.clip.mean.device
        (prediction,) = self.model.predict(images.to(device), valid, [(image.height, image.width)], classes)
        return prediction.to("cpu")


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
    numbers = bad_numbers(config)
    if numbers:
        raise SettingError("; ".join(numbers))
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

    Returns:
        what the JSON holds: the segments with their class names, scores, areas and boxes.
    """
    annotation, ids = panoptic_annotation(prediction.panoptic, vocabulary, 0, f"{name}_ids.png")
    names = {category.id: category.name for category in vocabulary.categories}
    segments = [{"name": names[s["category_id"]], **s} for s in annotation["segments_info"]]
    content = {"file_name": annotation["file_name"], "segments": segments}
    folder.mkdir(parents=True, exist_ok=True)
    picture = overlay(image_tensor(image), prediction.panoptic, vocabulary.names)
    Image.fromarray(picture).save(folder / f"{name}_segments.png")
    (folder / f"{name}_ids.png").write_bytes(encode_ids(ids))
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def run(options: argparse.Namespace) -> None:
    """Segment every image and say what is on it."""
    names = [path.stem for path in options.images]
    if len(set(names)) < len(names):
        raise SettingError("two images have one name, so their results would; run them one by one")
    problem = unwritable(options.out)
    if problem is not None:
        raise SettingError(f"--out {options.out}: {problem}")
    images = [read_image(path) for path in options.images]
    vocabulary = load_vocabulary(options.names)
    segmenter = load_segmenter(options.checkpoint, options.overrides, options.conf, options.device)
    for path, image in zip(options.images, images, strict=True):
        prediction = segmenter.segment(image, vocabulary)
        content = write_prediction(image, prediction, vocabulary, options.out, path.stem)
        found = [f"{s['name']} ({s['score']:.2f})" for s in content["segments"]]
        print(f"{path}: {', '.join(found) or 'nothing'}")
    print(f"written: {options.out}/NAME_segments.png, NAME_ids.png, NAME.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m odise_pl.predict", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="of a run, or an official release")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
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
    with clear_errors():
        run(_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
