"""Caption images with BLIP and write a copy of a shard set with the captions.

The batches of the model depend only on the shards, and on a CPU it uses one thread, so captions do not depend
on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from odise_pl.data.decoding import decode
from odise_pl.data.manifest import FILE_NAME, Captioning, Manifest, Shard, ShardSet, is_local
from odise_pl.data.prepare.packing import read_finished
from odise_pl.data.prepare.shards import Packed, ShardPlan, output_folder, write_manifest, write_shards
from odise_pl.data.prepare.source import to_json
from odise_pl.data.reading import RawSample, read_shard
from odise_pl.data.records import RECORD, DataError
from odise_pl.data.transforms import image_tensor, pixel_tensor
from odise_pl.errors import SettingError
from odise_pl.models.blip import BlipSentences, load_blip

WEIGHTS = Path("weights/blip-image-captioning-base")
_PER_GPU = 4  # processes per GPU; they also decode images
BATCH = 16  # images per batch; another size can change captions where words are tied


@dataclass(frozen=True)
class CaptionModel:
    """A BLIP model and its devices; each process loads it on first use.

    Attributes:
        weights: folder or hub id, see :func:`load_blip`.
        max_tokens: limit of a caption's length.
        devices: shards use them in turn.
    """

    weights: str
    max_tokens: int
    devices: tuple[str, ...]

    @classmethod
    def find(cls, weights: str, max_tokens: int, device: str) -> CaptionModel:
        """The model on all GPUs, or on the CPU if ``device`` is ``cpu``, or ``auto`` and there is no GPU.

        Raises:
            UserError: the default weights are missing, or there is no GPU.
        """
        if Path(weights) == WEIGHTS and not WEIGHTS.exists():
            raise DataError(f"--weights {WEIGHTS} is missing; get it with: odise weights fetch blip")
        count = torch.cuda.device_count() if device != "cpu" else 0
        if device == "cuda" and not count:
            raise SettingError("--device cuda: torch finds no GPU; use --device cpu")
        return cls(weights, max_tokens, tuple(f"cuda:{i}" for i in range(count)) or ("cpu",))

    @property
    def name(self) -> str:
        """The folder's name, or the hub id."""
        path = Path(self.weights)
        return path.resolve().name if path.exists() else self.weights

    @property
    def workers(self) -> int:
        """The default number of processes."""
        cores = os.cpu_count() or 1
        return cores if self.devices == ("cpu",) else min(cores, _PER_GPU * len(self.devices))

    def on(self, index: int) -> BlipSentences:
        """Load the model on one of the devices."""
        return _loaded(self.weights, self.max_tokens, self.devices[index % len(self.devices)])


@cache
def _loaded(weights: str, max_tokens: int, device: str) -> BlipSentences:
    disable_progress_bar()
    return load_blip(weights, max_tokens, option="--weights ").to(device)


def prepare_captions(shard_set: ShardSet, folder: Path, model: CaptionModel, workers: int = 1) -> Manifest:
    """Write a copy of a shard set in which every record has a ``generated_caption``.

    Shards keep their names and the order of their samples.

    Args:
        shard_set: the images; not changed.
        folder: of the new shard set.
        model: the captioning model.
        workers: number of processes.

    Raises:
        DataError: a shard or a sample is damaged, or the folder has other files.
        UserError: the model cannot be loaded.
    """
    before = shard_set.manifest
    sums = "".join(shard.sha256 for shard in before.shards)
    shards_digest = hashlib.sha256(sums.encode()).hexdigest()
    captioning = Captioning(model.name, model.on(0).digest(), model.max_tokens, shards_digest)
    if (folder / FILE_NAME).exists():
        expected = (captioning, before.source)
        return read_finished(folder, lambda m: (m.captioning, m.source) == expected)
    with output_folder(folder):
        pairs = zip(before.shards, shard_set.urls, strict=True)
        plans = [
            ShardPlan(shard.name, shard.samples, partial(_add_captions, url, shard, model, number))
            for number, (shard, url) in enumerate(pairs)
        ]
        shards = write_shards(plans, folder, asdict(captioning), workers)
        return write_manifest(replace(before, shards=shards, captioning=captioning), folder)


def _add_captions(url: str, shard: Shard, model: CaptionModel, number: int) -> Iterator[Packed]:
    """The samples of a shard with captions."""
    _check_sum(url, shard)
    samples = _read_samples(url, shard)
    while batch := list(islice(samples, BATCH)):
        images = [decode(sample).image for sample in batch]
        for raw, caption in zip(batch, _captions(images, model.on(number)), strict=True):
            record = json.loads(raw.members[RECORD]) | {"generated_caption": caption}
            yield raw.key, {**raw.members, RECORD: to_json(record)}


def _check_sum(url: str, shard: Shard) -> None:
    """Raise DataError if a local shard differs from its checksum in the manifest."""
    if is_local(url) and Path(url).is_file():
        with Path(url).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise DataError(
                    f"{url}: has another checksum than in {FILE_NAME}: it is damaged or was changed; "
                    f"prepare the set again"
                )


def _read_samples(url: str, shard: Shard) -> Iterator[RawSample]:
    for item in read_shard(url, list(range(shard.samples))):
        if isinstance(item, DataError):
            raise DataError(f"{item}; prepare the set again")
        yield item


def _captions(images: Sequence[Image.Image], model: BlipSentences) -> list[str]:
    device = model.mean.device
    with _one_thread():
        return model.caption(
            torch.cat([model.pixels(image_tensor(pixel_tensor(one))[None].to(device)) for one in images])
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: on a CPU, sums depend on how threads divide them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
