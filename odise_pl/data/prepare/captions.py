"""Caption images with BLIP and write a copy of a shard set with the captions.

Every sample is checked before the model runs. The batches of the model depend only on the shards, and on a
CPU it uses one thread, so captions do not depend on the number of processes.
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
from typing import TYPE_CHECKING

import torch

from odise_pl.data.decoding import decode
from odise_pl.data.images import decode_rgb
from odise_pl.data.manifest import FILE_NAME, Captioning, Manifest, Shard, ShardSet, is_local
from odise_pl.data.prepare.packing import count_entries, read_finished, report_problems
from odise_pl.data.prepare.processes import run_with_progress
from odise_pl.data.prepare.shards import Packed, ShardPlan, output_folder, write_manifest, write_shards
from odise_pl.data.prepare.source import Problem, to_json
from odise_pl.data.reading import Damage, RawSample, read_shard
from odise_pl.data.records import RECORD, DataError
from odise_pl.data.transforms import image_tensor
from odise_pl.errors import SettingError

if TYPE_CHECKING:
    from odise_pl.models.blip import BlipSentences

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
            fetch = f"hf download Salesforce/{WEIGHTS.name} --local-dir {WEIGHTS}"
            raise DataError(f"--weights {WEIGHTS} is missing; get it with: {fetch}")
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

    def digest(self) -> str:
        """SHA-256 of the model, see :meth:`BlipSentences.digest`."""
        return self.on(0).digest()


@cache
def _loaded(weights: str, max_tokens: int, device: str) -> BlipSentences:
    # slow imports, which processes that only check do not need
    from transformers.utils.logging import disable_progress_bar

    from odise_pl.models.blip import load_blip

    disable_progress_bar()
    return load_blip(weights, max_tokens, option="--weights ").to(device)


def prepare_captions(
    shard_set: ShardSet, folder: Path, model: CaptionModel, workers: int = 1, skip_bad: bool = False
) -> Manifest:
    """Write a copy of a shard set in which every record has a ``generated_caption``.

    Shards keep their names and the order of their samples.

    Args:
        shard_set: the images; not changed.
        folder: of the new shard set.
        model: the captioning model.
        workers: number of processes.
        skip_bad: skip samples with problems instead of stopping.

    Raises:
        DataError: there are problems (``problems.json`` lists them), or the folder has other files.
        UserError: the model cannot be loaded.
    """
    sums = "".join(shard.sha256 for shard in shard_set.manifest.shards)
    shards_digest = hashlib.sha256(sums.encode()).hexdigest()
    captioning = Captioning(model.name, model.digest(), model.max_tokens, shards_digest)
    if (folder / FILE_NAME).exists():
        expected = (captioning, shard_set.manifest.source)
        return read_finished(folder, lambda m: (m.captioning, m.source) == expected)
    with output_folder(folder):
        checked = _check(shard_set, workers)
        found = [problem for one in checked for problem in one.problems]
        problems = report_problems(shard_set.manifest.source, found, folder, skip_bad)
        if not any(one.good for one in checked):
            raise DataError(f"{shard_set.location}: has no usable sample")
        plans = _plans(shard_set, checked, model)
        fingerprint = (asdict(captioning), [one.good for one in checked])
        shards = write_shards(plans, folder, fingerprint, workers)
        manifest = _with_counts(shard_set.manifest, checked, problems)
        return write_manifest(replace(manifest, shards=shards, captioning=captioning), folder)


def _with_counts(manifest: Manifest, checked: Sequence[_Checked], problems: Sequence[Problem]) -> Manifest:
    counts = replace(
        manifest.counts,
        samples=sum(len(one.good) for one in checked),
        segments=sum(one.segments for one in checked),
        captions=sum(one.captions for one in checked),
        left_out=manifest.counts.left_out + count_entries(problems),
        problems=manifest.counts.problems + len(problems),
    )
    return replace(manifest, counts=counts)


@dataclass(frozen=True)
class _Checked:
    """Result of checking a shard.

    Attributes:
        good: indices of the usable samples.
        segments: number of segments of these samples.
        captions: number of the data set's captions of these samples.
        problems: of the other samples.
    """

    good: tuple[int, ...]
    segments: int
    captions: int
    problems: tuple[Problem, ...]


def _check(shard_set: ShardSet, workers: int) -> list[_Checked]:
    pairs = list(zip(shard_set.urls, shard_set.manifest.shards, strict=True))
    return run_with_progress(_check_shard, pairs, workers, "checking shards")


def _check_shard(pair: tuple[str, Shard]) -> _Checked:
    """Decode every sample of a shard."""
    url, shard = pair
    problems = [Problem(shard.name, shard.name, fault) for fault in _find_checksum_fault(url, shard)]
    good, segments, captions = [], 0, 0
    for place, item in enumerate(read_shard(url, list(range(shard.samples)))):
        try:
            if isinstance(item, Damage):
                raise DataError(item.text)
            sample = decode(item)
        except DataError as error:
            name = f"{shard.name}/{item.key}" if isinstance(item, RawSample) else f"{shard.name}[{place}]"
            problems.append(Problem(name, shard.name, str(error).replace(url, shard.name)))
        else:
            good.append(place)
            segments, captions = segments + len(sample.segments), captions + len(sample.captions)
    return _Checked(tuple(good), segments, captions, tuple(problems))


def _find_checksum_fault(url: str, shard: Shard) -> Iterator[str]:
    """Compare a local shard with its checksum in the manifest."""
    if not is_local(url) or not Path(url).is_file():
        return
    with Path(url).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield "has another checksum than in dataset.json: it is damaged or was changed"


def _plans(shard_set: ShardSet, checked: Sequence[_Checked], model: CaptionModel) -> list[ShardPlan]:
    shards = zip(shard_set.manifest.shards, shard_set.urls, checked, strict=True)
    return [
        ShardPlan(shard.name, len(one.good), partial(_add_captions, url, one.good, model, number))
        for number, (shard, url, one) in enumerate(shards)
        if one.good
    ]


def _add_captions(url: str, places: Sequence[int], model: CaptionModel, number: int) -> Iterator[Packed]:
    """The samples at these indices of a shard, with captions."""
    samples = _read_samples(url, places)
    while batch := list(islice(samples, BATCH)):
        for raw, caption in zip(batch, _captions(batch, model.on(number)), strict=True):
            record = json.loads(raw.members[RECORD]) | {"generated_caption": caption}
            yield raw.key, {**raw.members, RECORD: to_json(record)}


def _captions(batch: Sequence[RawSample], model: BlipSentences) -> list[str]:
    images = [image_tensor(decode_rgb(raw.members[raw.image])) for raw in batch]
    with _one_thread():
        return model.caption(torch.cat([model.pixels(image[None].to(model.mean.device)) for image in images]))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: on a CPU, sums depend on how threads divide them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_samples(url: str, places: Sequence[int]) -> Iterator[RawSample]:
    for item in read_shard(url, list(places)):
        if isinstance(item, Damage):
            raise DataError(f"{item.text}; it was readable before; start again")
        yield item
