"""Divide a data set without splits into images to train and to validate on. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from odise_pl.data.prepare.source import Source
from odise_pl.errors import SettingError

SPLITS = ("train", "val")


def take_share(source: Source, split: str | None, share: float) -> Source:
    """The images of one of two splits, chosen by the hash of their names: equal on every machine.

    Args:
        source: the whole data set.
        split: ``train`` or ``val``.
        share: of the images, at least one, for ``val``.

    Raises:
        SettingError: another split, or fewer than two images.
    """
    if split not in SPLITS:
        raise SettingError(f"--split {split} with --val {share}: choose train or val")
    if len(source.samples) < 2:
        raise SettingError(f"--val {share}: the data set has fewer than two usable images to divide")
    shuffled = sorted(source.samples, key=lambda sample: hashlib.sha256(sample.key.encode()).digest())
    count = min(max(1, round(share * len(shuffled))), len(shuffled) - 1)
    held_out = {sample.key for sample in shuffled[:count]}
    chosen = tuple(sample for sample in source.samples if (sample.key in held_out) == (split == "val"))
    annotations = f"{source.origin.annotations}, {share} of them for val"
    return replace(
        source, origin=replace(source.origin, split=split, annotations=annotations), samples=chosen
    )
