"""The description of a network in a checkpoint. Imports no torch.

A description is instantiated, and checkpoints may come from untrusted sources. So a description may name only
the constructors in ``TARGETS``, may refer only to ``paths``, and downloads nothing. Files of frozen weights
are read without running pickled code.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odise_pl.errors import SettingError, find_user_error
from odise_pl.files import is_path

_ROOTS = ("odise_pl.models.build.build_odise", "odise_pl.models.build.build_groupvit")
TARGETS = frozenset(
    {
        *_ROOTS,
        "odise_pl.models.build.HeadSettings",
        "odise_pl.models.build.MaskFormerSettings",
        "odise_pl.models.build.DenseSettings",
        "odise_pl.models.build.BackboneSettings",
        "odise_pl.models.build.TimmSettings",
        "odise_pl.models.build.JointSettings",
        "odise_pl.models.build.ClipFeatureSettings",
        "odise_pl.models.build.ClipSettings",
        "odise_pl.models.build.RefinementSettings",
        "odise_pl.models.build.GeneratorSettings",
        "odise_pl.models.build.GroupViTSettings",
        "odise_pl.models.build.GroupViTArchitecture",
        "odise_pl.models.build.GroupingSettings",
        *(
            f"odise_pl.models.build.{kind}_captioner"
            for kind in ("implicit", "empty", "heuristic", "blip", "none")
        ),
        "odise_pl.models.inference.InferenceSettings",
        "odise_pl.models.build.ClassifierSettings",
        "odise_pl.models.odise.ClassifierSettings",  # of earlier versions
        "odise_pl.models.backbones.stable_diffusion.DiffusionArchitecture",
        "odise_pl.models.backbones.text_encoders.TextArchitecture",
        "odise_pl.models.backbones.clip.CLIPArchitecture",
    }
)
PARTS = ("backbone", "clip", "captioner", "classifier")
FILES = ("weights", "unet")  # keys of a part that name frozen weights
SIDES = ("eval_short_side", "eval_long_side")
_FOLDERS = ("weights", "toyworld")  # keys of ``paths`` that a description may refer to
_REFERENCE = re.compile(rf"\$\{{paths\.(?:{'|'.join(_FOLDERS)})\}}")


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of a network.

    Attributes:
        model: arguments of :func:`~odise_pl.models.build.build_odise` as nested plain values; only
            ``${paths.NAME}`` stays unresolved.
        sides: shorter side and limit of the longer side of evaluated images, in pixels.
        seed: of random frozen weights, which checkpoints do not contain.
        source: origin of the description, for messages.
    """

    model: Mapping[str, Any]
    sides: tuple[int, int]
    seed: int = 0
    source: str = "the configuration"

    @classmethod
    def of_config(cls, config: DictConfig) -> NetworkSettings:
        """The network of a composed configuration."""
        model = _resolve_model(OmegaConf.masked_copy(config, ["model", "fusion", *PARTS]))
        return cls(model, (config.data.eval_short_side, config.data.eval_long_side), config.seed)

    def record(self) -> dict[str, Any]:
        """Plain values for a checkpoint, read by :func:`read_record`."""
        return {"model": self.model, "sides": list(self.sides), "seed": self.seed}

    def changed(self, changes: Mapping[str, Any]) -> NetworkSettings:
        """A copy with some settings replaced.

        Args:
            changes: by command-line key: ``clip.weights``, ``model.inference.top_k``, ``fusion.seen_share``;
                a whole part (``captioner``) is replaced, not merged. Keys of other sections are ignored.
        """
        model = OmegaConf.create(copy.deepcopy(dict(self.model)))
        for key, value in changes.items():
            if (place := model_key(key)) is not None:
                OmegaConf.update(model, place, value, merge=False, force_add=True)
        short, long = (
            changes.get(f"data.{name}", side) for name, side in zip(SIDES, self.sides, strict=True)
        )
        plain: Any = OmegaConf.to_container(model)
        return replace(self, model=plain, sides=(short, long), seed=changes.get("seed", self.seed))

    def weights(self) -> dict[str, Any]:
        """The frozen weights to load, by setting."""
        captions = ("captioner",) if self.model["captioner"].get("on_the_fly") is True else ()
        loaded = ("backbone", "clip", *captions)
        found = {key: section.get(name) for key, section, name in frozen_files(self.model)}
        return {k: v for k, v in found.items() if v is not None and k.partition(".")[0] in loaded}

    def resolved(self, paths: Mapping[str, Any]) -> DictConfig:
        """The arguments of ``build_odise`` with references to ``paths`` resolved."""
        return OmegaConf.create({"paths": dict(paths), "model": dict(self.model)}).model

    def build(self, paths: Mapping[str, Any], **options: Any) -> Any:
        """An :class:`~odise_pl.models.odise.Odise` with untrained weights; seeds torch's random numbers.

        Args:
            paths: folders by name.
            options: further arguments of ``build_odise``.

        Raises:
            UserError: settings do not fit together, weights are missing, or the description is damaged.
        """
        import torch

        torch.manual_seed(self.seed)
        try:
            return instantiate(self.resolved(paths), **options)
        except Exception as error:
            cause = error.__cause__ or error
            damage = isinstance(cause, TypeError | AttributeError | OmegaConfBaseException)
            if (known := find_user_error(error)) is not None:
                raise known from error
            if not damage:
                raise
            raise SettingError(
                f"{self.source}: its description of the network is damaged ({cause})"
            ) from error


def _resolve_model(sections: DictConfig) -> dict[str, Any]:
    """The section ``model`` as nested plain values; only ``${paths.NAME}`` stays unresolved."""
    OmegaConf.set_struct(sections, False)
    sections.paths = {name: rf"\${{paths.{name}}}" for name in _FOLDERS}  # stay references
    model: Any = OmegaConf.to_container(sections.model, resolve=True)
    for _, section in frozen_sections(model):
        section.pop("source", None)  # a shell command, not trusted from a checkpoint
    return model


def frozen_sections(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and sections of parts with weights; of two backbones ``backbone.first``, ``backbone.second``."""
    for part in PARTS:
        section = model.get(part, {})
        two = [name for name in ("first", "second") if part == "backbone" and name in section]
        yield from ((f"{part}.{name}", section[name]) for name in two)
        if not two:
            yield part, section


def frozen_files(model: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Settings that may name frozen weights: the key, its section, and its name there."""
    return ((f"{key}.{name}", section, name) for key, section in frozen_sections(model) for name in FILES)


def model_key(key: str) -> str | None:
    """The key in :attr:`NetworkSettings.model` of a command-line key; None for settings of other sections."""
    head, dot, rest = key.partition(".")
    if head in PARTS:
        return key
    if head == "model" and dot:
        return rest
    return f"classifier.{rest}" if head == "fusion" and dot else None


def read_record(record: Mapping[str, Any], source: str, named: Collection[str] = ()) -> NetworkSettings:
    """The network that a checkpoint describes.

    Args:
        record: from :meth:`NetworkSettings.record`, of this or an earlier version.
        source: the checkpoint, for messages.
        named: command-line keys that the user overrides; the record's values there are not checked.

    Raises:
        SettingError: the record is damaged, or sets what a checkpoint must not set.
    """
    try:
        if "config" in record:
            record = _of_earlier_version(record)
        model, sides, seed = record["model"], tuple(record["sides"]), record.get("seed", 0)
        own = {place for key in named if (place := model_key(key)) is not None}
        found = [*_foreign(model, "", own)]
        numbers = len(sides) == 2 and all(type(x) is int for x in (*sides, seed))
        if model["_target_"] not in _ROOTS or not numbers:
            found.append("not a network")
        network = NetworkSettings(model, sides, seed, source)
        found += [
            f"{key}={weights!a:.80} (a download)"
            for key, weights in network.weights().items()
            if not {key, key.rpartition(".")[0], key.partition(".")[0]} & own
            and not _is_harmless(key, weights)
        ]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise SettingError(f"{source}: its description of the network is damaged ({error!a:.80})") from error
    if found:
        raise SettingError(
            f"{source}: its description has settings that a checkpoint must not choose: {', '.join(found)}; "
            "if you trust them, set them yourself as KEY=VALUE"
        )
    return network


def _foreign(values: Any, place: str, own: Collection[str]) -> Iterator[str]:
    """Settings that a checkpoint must not choose, as ``KEY=VALUE``."""
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        here = f"{place}.{key}".lstrip(".")
        if here in own and "." not in str(key):
            continue
        is_word = isinstance(key, int) or (isinstance(key, str) and key.isidentifier() and key[0] != "_")
        if is_word and isinstance(value, Mapping | list | tuple):
            yield from _foreign(value, here, own)
        elif not (is_word and _is_plain(value)) and not (key == "_target_" and value in TARGETS):
            yield f"{here}={value!a:.80}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return "$" not in _REFERENCE.sub("", value) and value.isprintable()  # messages print it
    return value is None or isinstance(value, int | float)


def _is_harmless(key: str, weights: str) -> bool:
    random = weights == "random" and key != "captioner.weights"  # where it would be a hub id
    return random or is_path(weights) or os.path.exists(weights)  # noqa: PTH110 (any text)


# Records of earlier versions

_RENAMED = {"backbone": {"train_window": "window"}}
_MOVED = {
    **{name: f"models.{name}" for name in ("build", "inference", "odise", "backbones")},
    "optimization": "training.optimization",
}
_SECTIONS = ("model", "fusion", "backbone", "clip", "captioner")
_EARLIER_REFERENCE = re.compile(rf"\$\{{(?:{'|'.join(('paths', 'classifier', *_SECTIONS))})(?:\.\w+)*\}}")
_FUSION = ("seen_share", "unseen_share", "mask_prompt", "clip_prompt")
_CLASSIFIER = {
    "_target_": "odise_pl.models.build.ClassifierSettings",
    "mode": "both",
    **{key: f"${{fusion.{key}}}" for key in _FUSION},
}


def _of_earlier_version(record: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the sections of a configuration, which earlier versions saved, to a network."""
    sections: Any = current_names({name: record["config"][name] for name in _SECTIONS})
    if "$" in _EARLIER_REFERENCE.sub("", repr(sections)):
        raise ValueError("foreign reference")
    model = _resolve_model(OmegaConf.create({"classifier": _CLASSIFIER, **sections}))
    return {"model": model, "sides": [record["data"][name] for name in SIDES]}


def current_names(settings: Any, section: str = "") -> Any:
    """Settings of an earlier version under current names: renamed keys and moved modules."""
    if isinstance(settings, Mapping):
        renamed = _RENAMED.get(section, {})
        return {renamed.get(key, key): current_names(value, str(key)) for key, value in settings.items()}
    if section == "_target_" and isinstance(settings, str):
        package, module, *rest = [*settings.split("."), ""]
        if package == "odise_pl" and module in _MOVED:
            return ".".join([package, _MOVED[module], *rest]).rstrip(".")
    return settings
