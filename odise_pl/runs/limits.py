"""Numbers of a composed configuration and the limits within which they make sense. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

_HEAD = "channels mask_channels embed_dim pixel_feedforward pixel_layers queries layers heads feedforward"
_POSITIVE = (
    *("global_batch", "validate_every", "trainer.max_steps", "criterion.num_points", "model.inference.top_k"),
    *(f"data.{name}" for name in ("batch_size", "eval_batch_size", "epoch_length", "limit_samples")),
    *(f"data.{name}" for name in ("image_size", "eval_short_side", "eval_long_side")),
    *(f"backbone.{name}" for name in ("channels", "input_size", "window")),
    *(f"model.head.{name}" for name in _HEAD.split()),
    *(f"captioner.{name}" for name in ("top", "max_tokens", "remember")),
    "optimizer.reference_batch",
)
_COUNTED = (
    *(f"data.{name}" for name in ("num_workers", "shuffle_buffer", "words")),
    *("backbone.window_batch", "optimizer.warmup_steps", "seed"),
)
# The least value of whole numbers; null, where it is allowed, stands for another default.
_WHOLE = {**dict.fromkeys(_POSITIVE, 1), **dict.fromkeys(_COUNTED, 0)}
_AUTO = ("data.batch_size", "backbone.window_batch")  # may be left to who knows the memory
_REAL = (
    *(f"optimizer.{name}" for name in ("lr", "weight_decay", "clip_norm", "warmup_factor", "gamma")),
    *(f"criterion.{name}" for name in ("oversample", "importance", "no_object_weight")),
    *(f"criterion.weights.{name}" for name in ("classification", "mask", "dice")),
    *(f"fusion.{name}" for name in ("seen_share", "unseen_share")),
    *(f"model.inference.{name}" for name in ("object_threshold", "overlap_threshold")),
    "data.color_jitter",
)


def bad_numbers(config: DictConfig) -> list[str]:
    """What is wrong with the numbers of a configuration, each named by its key; parts may be absent."""
    values = {key: OmegaConf.select(config, key) for key in (*_WHOLE, *_REAL)}
    problems = [
        _wrong(key, value)
        for key, value in values.items()
        if value is not None and not (value == "auto" and key in _AUTO) and not _fits(value, _WHOLE.get(key))
    ]
    return problems or [*_bad_sizes(config)]


def _fits(value: Any, least: int | None) -> bool:
    if isinstance(value, bool):
        return False
    if least is None:
        return isinstance(value, int | float) and value >= 0
    return isinstance(value, int) and value >= least


def _wrong(key: str, value: Any) -> str:
    if key in _WHOLE:
        auto = ", or auto" if key in _AUTO else ""
        return f"{key}={value} must be a whole number, {_WHOLE[key]} or more{auto}"
    return f"{key}={value} must be a number, 0 or more"


def _bad_sizes(config: DictConfig) -> Iterator[str]:
    """Numbers that have to fit each other."""
    scales = OmegaConf.select(config, "data.scale_range")
    if scales is not None and not _rising(scales):
        yield f"data.scale_range={scales} must be [SMALLEST,LARGEST], above 0"
    head = OmegaConf.select(config, "model.head")
    if head is not None and (head.channels % 32 or head.channels % head.heads):
        yield f"model.head.channels={head.channels} must be a multiple of 32 and of heads={head.heads}"
    window = OmegaConf.select(config, "backbone.window")
    if window is not None and window % 32:
        yield f"backbone.window={window} must be a multiple of 32, or null for the shorter side of the image"
    width = OmegaConf.select(config, "backbone.channels")
    if width is not None and width % 128:
        yield f"backbone.channels={width} must be a multiple of 128"


def _rising(pair: Any) -> bool:
    numbers = isinstance(pair, ListConfig) and all(isinstance(x, int | float) for x in pair)
    return numbers and len(pair) == 2 and 0 < pair[0] <= pair[1]
