"""A trained network that segments images by words, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from odise_pl.checkpoints.description import NetworkSettings, model_key, read_record
from odise_pl.checkpoints.metadata import CheckpointDescription, describe
from odise_pl.checkpoints.weights import load_weights
from odise_pl.data.images import read_image, to_upright_rgb
from odise_pl.data.transforms import EvalResize, image_tensor
from odise_pl.errors import SettingError
from odise_pl.hub.networks import resolve
from odise_pl.models.odise import InferenceClasses, Odise, pad_images
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.runs.checks import check_network
from odise_pl.runs.conf import CONF, compose_config
from odise_pl.vocabulary import Vocabulary, load_vocabulary

ImageSource = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Segmenter:
    """A trained network that segments images by words.

    Attributes:
        model: the network, in eval mode.
        training: classes that it was trained on, for which CLIP has less weight.
        resize: resizes images as in evaluation.
    """

    model: Odise
    training: Vocabulary
    resize: EvalResize
    _classes: dict[tuple[Vocabulary, torch.device], InferenceClasses] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_pretrained(
        cls, checkpoint: Path | str, settings: Mapping[str, Any] | None = None, device: str = "auto"
    ) -> Segmenter:
        """Load the network of a checkpoint.

        Args:
            checkpoint: a run (its newest checkpoint), a checkpoint, an official release, a published folder,
                or ``OWNER/NAME`` on the Hub, which is downloaded once.
            settings: that replace the checkpoint's: ``{"clip.weights": FILE}``, ``{"paths.weights": DIR}``,
                ``{"model.inference.object_threshold": 0.1}``.
            device: ``cpu``, ``cuda`` or ``auto``.

        Raises:
            UserError: a file is missing, or a setting is unknown or invalid.
        """
        path = resolve(checkpoint)
        changes = dict(settings or {})
        _refuse_unknown(changes)
        described = describe(path)
        network = _network(described, str(path), changes)
        paths = _paths() | {
            key.removeprefix("paths."): changes[key] for key in changes if key.startswith("paths.")
        }
        check_network(network, paths)
        model: Odise = network.build(paths)
        load_weights(model, path)
        training = described.vocabulary or load_vocabulary("coco_panoptic")
        return cls(model.eval().to(_device(device)), training, EvalResize(*network.sides))

    def __call__(self, image: ImageSource, words: Vocabulary | str | Sequence[Any]) -> Segmentation:
        """Segment an image; it is seen upright, as viewers show it.

        Args:
            image: a path, a Pillow image, or uint8 [H, W, 3] of red, green and blue.
            words: what to look for; see :func:`~odise_pl.vocabulary.load_vocabulary`. The embeddings of the
                last ones are cached.

        Raises:
            VocabularyError: there are no words, or duplicates.
            TypeError: the image is of another type.
            DataError: the image cannot be read as RGB.
        """
        picture = _read(image)
        device = self.model.clip.mean.device
        vocabulary = load_vocabulary(words, one_word=True)
        classes = self._embed(vocabulary, device)
        images, valid = pad_images([image_tensor(self.resize.image(picture))])
        sizes = (valid, [(picture.height, picture.width)])
        (prediction,) = self.model.predict(images.to(device), *sizes, classes)
        return Segmentation(picture, vocabulary, prediction.to("cpu"))

    def _embed(self, vocabulary: Vocabulary, device: torch.device) -> InferenceClasses:
        key = (vocabulary, device)
        if key not in self._classes:
            self._classes.clear()
            self._classes[key] = self.model.prepare(vocabulary, self.training)
        return self._classes[key]


def _network(described: CheckpointDescription, source: str, changes: Mapping[str, Any]) -> NetworkSettings:
    if described.record is None:
        config = compose_config("evaluate", ["run_dir=.", f"model=odise_{described.supervision}"])
        network = NetworkSettings.of_config(config)
    else:
        network = read_record(described.record, source, changes)
    network = network.changed(changes)
    if not network.model["captioner"].get("on_the_fly", True):
        raise SettingError(
            "captioner=blip reads captions from shards, which single images lack: set "
            "captioner.on_the_fly=true to generate them"
        )
    return network


def _read(image: ImageSource) -> Image.Image:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        found = f"{type(image).__name__} {getattr(image, 'dtype', '')}".strip()
        raise TypeError(f"image is {found}, expected a path, a Pillow image or a uint8 array [H, W, 3]")
    return to_upright_rgb(image)


def _paths() -> dict[str, Any]:
    shared: Any = OmegaConf.load(CONF / "shared.yaml")
    paths: Any = OmegaConf.to_container(shared.paths, resolve=True)
    return paths


def _refuse_unknown(changes: Mapping[str, Any]) -> None:
    for key in changes:
        known = model_key(key) is not None or key.startswith(("paths.", "data.eval_"))
        if not known or "." not in key:
            raise SettingError(
                f"{key}: not a setting of the network; examples are clip.weights, classifier.mode, "
                "model.inference.object_threshold, paths.weights"
            )


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise SettingError(f"device {name}: choose auto, cpu or cuda")
    if name != "cpu" and not available:
        raise SettingError(f"device {name}: PyTorch finds no GPU; choose cpu")
    return name
