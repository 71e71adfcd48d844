"""A trained network that segments images by words, and what it finds."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from omegaconf import OmegaConf
from PIL import Image

from odise_pl.checkpoints.description import SIDES, NetworkSettings, model_key, read_record
from odise_pl.checkpoints.metadata import CheckpointDescription, describe
from odise_pl.checkpoints.weights import load_weights
from odise_pl.data.transforms import EvalResize, image_tensor
from odise_pl.distributed.sharding import place
from odise_pl.errors import SettingError
from odise_pl.hub.networks import resolve
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.network import SegmentationNetwork
from odise_pl.models.odise import pad_images
from odise_pl.prediction.inputs import ImageSource, Words, load_image, load_words
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.runs.checks import check_network
from odise_pl.runs.conf import CONF, compose_config
from odise_pl.runs.console import no_progress_bars
from odise_pl.structures import CANVAS_MULTIPLE, Size
from odise_pl.vocabulary import Vocabulary, load_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Segmenter:
    """A trained network that segments images by words.

    Attributes:
        model: the network, in eval mode.
        training: classes that it was trained on, for which CLIP has less weight.
        resize: resizes images as in evaluation.
        dtype: of matrix products and convolutions; bfloat16 is by autocast.
    """

    model: SegmentationNetwork
    training: Vocabulary
    resize: EvalResize
    dtype: torch.dtype = torch.float32
    _classes: dict[Any, InferenceClasses] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> Segmenter:
        """Load the network of a checkpoint.

        Args:
            checkpoint: a run (its newest checkpoint), a checkpoint, an official release, a published folder,
                or ``OWNER/NAME`` on the Hub, which is downloaded once.
            settings: that replace the checkpoint's: ``{"clip.weights": FILE}``, ``{"paths.weights": DIR}``,
                ``{"model.inference.object_threshold": 0.1}``.
            device: ``cpu``, ``cuda`` or ``auto``.
            dtype: ``float32`` or ``bfloat16``, which rounds more, takes less memory, and is faster on most
                GPUs and on processors with instructions for it.

        Raises:
            UserError: a file is missing, or a setting is unknown or invalid.
        """
        if dtype not in DTYPES:
            raise SettingError(f"dtype {dtype}: choose one of {', '.join(DTYPES)}")
        path = resolve(checkpoint)
        changes = dict(settings or {})
        _refuse_unknown(changes)
        described = describe(path)
        network = _network(described, str(path), changes)
        paths = _paths() | {
            key.removeprefix("paths."): changes[key] for key in changes if key.startswith("paths.")
        }
        check_network(network, paths)
        with no_progress_bars():
            model: SegmentationNetwork = network.build(paths)
        load_weights(model, path)
        training = described.vocabulary or load_vocabulary("coco_panoptic")
        place(model.eval(), DTYPES[dtype])
        return cls(model.to(_device(device)), training, EvalResize(*network.sides), DTYPES[dtype])

    @overload
    def __call__(
        self,
        image: ImageSource,
        words: Words,
        *,
        other: Words | None = None,
        templates: str | Sequence[str] = (),
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        classifier: str | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: list[Any],
        words: Words,
        *,
        other: Words | None = None,
        templates: str | Sequence[str] = (),
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        classifier: str | None = None,
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        image: ImageSource | list[Any],
        words: Words,
        *,
        other: Words | None = None,
        templates: str | Sequence[str] = (),
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        classifier: str | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or a list of images; they are seen upright, as viewers show them.

        Images of a list that have the same size on the network's canvas share a pass; results are those of
        single images, up to rounding. Several threads may call at once.

        Args:
            image: a path, a Pillow image, uint8 [H, W, 3] of red, green and blue or [H, W] of grey, a tensor
                [3, H, W], uint8 or float in 0..1, or a list of these.
            words: what to look for; see :func:`~odise_pl.vocabulary.load_vocabulary`. The embeddings of the
                last ones are cached. One word with an underscore must be the name of a packaged vocabulary.
            other: background words, in the same forms: their pixels belong to no segment.
            templates: prompts for masked CLIP, with ``{}`` for the name (``"a photo of a {}."``); several are
                averaged. Default: the network's own.
            object_threshold, overlap_threshold: see :class:`~odise_pl.models.inference.InferenceSettings`.
            classifier: ``both``, ``diffusion`` or ``discriminative``; see
                :class:`~odise_pl.models.classifiers.fusion.ClassifierSettings`. Default: the network's own.

        Raises:
            VocabularyError: there are no words, or duplicates.
            TypeError: an image is of another type.
            DataError: an image cannot be read as RGB.
            SettingError: another argument is invalid.
        """
        model = self._with(
            {"mode": classifier, "clip_prompt": _prompts(templates)},
            {"object_threshold": object_threshold, "overlap_threshold": overlap_threshold},
        )
        vocabulary, everything = load_words(words, other)
        pictures = [load_image(one) for one in (image if isinstance(image, list) else [image])]
        classes = self._embed(model, everything)
        predictions = self._predict(model, pictures, classes)
        found = [
            Segmentation(picture, vocabulary, prediction)
            for picture, prediction in zip(pictures, predictions, strict=True)
        ]
        return found if isinstance(image, list) else found[0]

    def _with(self, classifier: Mapping[str, Any], thresholds: Mapping[str, Any]) -> SegmentationNetwork:
        """A network of the same weights with other settings, except for None; other threads keep theirs."""
        model = copy.copy(self.model)
        model.classifier = replace(model.classifier, **_given(classifier))
        model.inference = replace(model.inference, **_given(thresholds))
        return model

    def _embed(self, model: SegmentationNetwork, vocabulary: Vocabulary) -> InferenceClasses:
        key = (vocabulary, repr(model.classifier.clip_prompt), model.device)
        classes = self._classes.get(key)
        if classes is None:
            classes = model.prepare(vocabulary, self.training)
            self._classes.clear()
            self._classes[key] = classes
        return classes

    def _predict(
        self, model: SegmentationNetwork, pictures: Sequence[Image.Image], classes: InferenceClasses
    ) -> list[NetworkPrediction]:
        device, found = model.device, dict[int, NetworkPrediction]()
        tensors = [image_tensor(self.resize.image(picture)) for picture in pictures]
        # a canvas of another size would have other windows, and the release compares sizes within a batch
        unit = 1 if model.published_quirks else CANVAS_MULTIPLE
        groups = defaultdict[Size, list[int]](list)
        for index, (_, height, width) in enumerate(tensor.shape for tensor in tensors):
            groups[-(-height // unit), -(-width // unit)].append(index)
        for members in groups.values():
            images, valid = pad_images([tensors[i] for i in members])
            sizes = [(pictures[i].height, pictures[i].width) for i in members]
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                found |= zip(members, model.predict(images.to(device), valid, sizes, classes), strict=True)
        return [found[i] for i in range(len(pictures))]


def _network(described: CheckpointDescription, source: str, changes: Mapping[str, Any]) -> NetworkSettings:
    if described.record is None:
        config = compose_config("evaluate", ["run_dir=.", described.preset])
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


def _paths() -> dict[str, Any]:
    shared: Any = OmegaConf.load(CONF / "shared.yaml")
    paths: Any = OmegaConf.to_container(shared.paths, resolve=True)
    return paths


def _refuse_unknown(changes: Mapping[str, Any]) -> None:
    for key in changes:
        known = model_key(key) is not None or key.startswith("paths.") or key.removeprefix("data.") in SIDES
        if not known or "." not in key:
            raise SettingError(
                f"{key}: not a setting of the network; examples are clip.weights, classifier.mode, "
                "model.inference.object_threshold, paths.weights"
            )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _prompts(templates: str | Sequence[str]) -> tuple[str, ...] | None:
    """Templates as prompts; None for none."""
    prompts = (templates,) if isinstance(templates, str) else tuple(templates)
    for prompt in prompts:
        if "{}" not in prompt:
            raise SettingError(f"templates: {prompt!r} needs {{}} for the class name")
    return prompts or None


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise SettingError(f"device {name}: choose auto, cpu or cuda")
    if name != "cpu" and not available:
        raise SettingError(f"device {name}: PyTorch finds no GPU; choose cpu")
    return name
