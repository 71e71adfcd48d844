"""A trained network that segments images by words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image

from odise_pl.checkpoints.description import NetworkSettings, model_key, read_record
from odise_pl.checkpoints.metadata import describe
from odise_pl.checkpoints.weights import load_weights
from odise_pl.data.images import to_upright_rgb
from odise_pl.data.transforms import EvalResize, image_tensor
from odise_pl.errors import SettingError
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.odise import InferenceClasses, Odise, pad_images
from odise_pl.runs.checks import check_network
from odise_pl.runs.conf import CONF, compose_config
from odise_pl.vocabulary import Vocabulary, load_vocabulary


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

    def segment(self, image: Image.Image, vocabulary: Vocabulary | str | Sequence[str]) -> NetworkPrediction:
        """Panoptic map, instances and class map at the size of the upright image, computed on access.

        Instances take the most memory: one byte per pixel and instance.

        Args:
            image: see :func:`~odise_pl.data.images.to_upright_rgb`.
            vocabulary: what to look for; see :func:`~odise_pl.vocabulary.load_vocabulary`. The embeddings of
                the last one are cached.

        Raises:
            VocabularyError: it is empty or has duplicate names.
            TypeError: the image is not a Pillow image.
            DataError: the image cannot be read as RGB.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is {type(image).__name__}, expected PIL.Image: use Image.open(PATH), or "
                "Image.fromarray(ARRAY) for uint8 [H, W, 3]"
            )
        device = self.model.clip.mean.device
        classes = self._embed(load_vocabulary(vocabulary, one_word=True), device)
        image = to_upright_rgb(image)
        images, valid = pad_images([image_tensor(self.resize.image(image))])
        sizes = (valid, [(image.height, image.width)])
        (prediction,) = self.model.predict(images.to(device), *sizes, classes)
        return prediction.to("cpu")

    def _embed(self, vocabulary: Vocabulary, device: torch.device) -> InferenceClasses:
        key = (vocabulary, device)
        if key not in self._classes:
            self._classes.clear()
            self._classes[key] = self.model.prepare(vocabulary, self.training)
        return self._classes[key]


def load_segmenter(
    checkpoint: Path | str, settings: Mapping[str, Any] | None = None, device: str = "auto"
) -> Segmenter:
    """Load the network of a checkpoint.

    Args:
        checkpoint: of a run, or an official release.
        settings: that replace the checkpoint's: ``{"clip.weights": FILE}``, ``{"paths.weights": DIR}``,
            ``{"model.inference.object_threshold": 0.1}``.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        UserError: a file is missing, or a setting is unknown or invalid.
    """
    if not Path(checkpoint).is_file():
        raise SettingError(
            f"{checkpoint} does not exist; give the checkpoint of a run or an official release"
        )
    changes = dict(settings or {})
    _refuse_unknown(changes)
    described = describe(checkpoint)
    if described.record is None:
        config = compose_config("evaluate", ["run_dir=.", f"model=odise_{described.supervision}"])
        network = NetworkSettings.of_config(config)
    else:
        network = read_record(described.record, str(checkpoint), changes)
    network = network.changed(changes)
    if not network.model["captioner"].get("on_the_fly", True):
        raise SettingError(
            "captioner=blip reads captions from shards, which single images lack: set "
            "captioner.on_the_fly=true to generate them"
        )
    paths = _paths() | {
        key.removeprefix("paths."): changes[key] for key in changes if key.startswith("paths.")
    }
    check_network(network, paths)
    torch.manual_seed(0)  # so that random frozen weights are those of training
    model: Odise = network.build(paths)
    load_weights(model, checkpoint)
    training = described.vocabulary or load_vocabulary("coco_panoptic")
    return Segmenter(model.eval().to(_device(device)), training, EvalResize(*network.sides))


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
