"""What each process does when captions are written into shards: check, caption, write a shard or less."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from odise_pl.data.decoding import DecodedSample, decode
from odise_pl.data.images import decode_rgb
from odise_pl.data.manifest import Shard, is_local
from odise_pl.data.prepare.shards import WORK, Packed, write_file, write_packed
from odise_pl.data.reading import Damage, RawSample, read_shard
from odise_pl.data.records import RECORD, DataError, Problem
from odise_pl.data.transforms import image_tensor
from odise_pl.errors import SettingError

if TYPE_CHECKING:
    from odise_pl.models.blip import BlipSentences

CHUNK = 64  # images between two notes of what is done
BATCH = 16  # images that the model reads at once; changing it can change a caption where words are tied


def devices(name: str) -> tuple[str, ...]:
    """The devices that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises:
        SettingError: there is no GPU.
    """
    count = torch.cuda.device_count() if name != "cpu" else 0
    if name == "cuda" and not count:
        raise SettingError("--device cuda: torch finds no GPU; use --device cpu")
    return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)


class Describes(Protocol):
    """A loaded captioning model, like :class:`~odise_pl.models.blip.BlipSentences`."""

    @property
    def mean(self) -> Tensor:
        """A tensor of the model, which tells its device."""

    def pixels(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in 0..1, of any size, as the model takes them: [N, 3, S, S]."""

    def caption(self, pixels: Tensor) -> list[str]:
        """A sentence about each image."""


class CaptionSource(Protocol):
    """Which model captions; each process loads it when it first needs it."""

    @property
    def name(self) -> str:
        """For the manifest."""

    @property
    def max_tokens(self) -> int:
        """Limit of a caption's length."""

    def on(self, index: int) -> Describes:
        """The model on one of its devices."""

    def digest(self) -> str:
        """Changes with the model."""


@dataclass(frozen=True)
class CaptionModel:
    """Which BLIP captions, and where it runs; each process loads it when it first needs it.

    Attributes:
        weights: folder or hub id, see :func:`load_blip`.
        max_tokens: limit of a caption's length.
        devices: used in turn.
    """

    weights: str
    max_tokens: int
    devices: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, or the hub id."""
        path = Path(self.weights)
        return path.resolve().name if path.exists() else self.weights

    def on(self, index: int) -> BlipSentences:
        """The model on one of the devices."""
        return _loaded(self.weights, self.max_tokens, self.devices[index % len(self.devices)])

    def digest(self) -> str:
        """SHA-256 of the model, see :meth:`BlipSentences.digest`."""
        return self.on(0).digest()


@cache
def _loaded(weights: str, max_tokens: int, device: str) -> BlipSentences:
    if max_tokens < 1:
        raise SettingError(f"--max-tokens {max_tokens} must be 1 or more")
    # takes seconds, which processes that only check and write should not wait for
    from transformers.utils.logging import disable_progress_bar

    from odise_pl.models.blip import load_blip

    disable_progress_bar()  # there are bars enough
    return load_blip(weights, max_tokens, option="--weights ").to(device)


@dataclass(frozen=True)
class CheckedShard:
    """What was found out about a shard.

    Attributes:
        state: changes with the file.
        good: places of the samples that can be used.
        segments: annotated in these samples.
        captions: of the data set in these samples.
        problems: all that is wrong with the others.
    """

    state: str
    good: tuple[int, ...]
    segments: int
    captions: int
    problems: tuple[Problem, ...]


def check_shard(pair: tuple[str, Shard], folder: Path) -> CheckedShard:
    """Decode every sample of a shard, or return what an interrupted run noted if nothing has changed."""
    url, shard = pair
    state = _state(url, shard)
    note = folder / WORK / f"checked-{Path(shard.name).stem}.json"
    found = _noted(note, state, lambda: asdict(_check(url, shard, state)))
    problems = tuple(Problem(**problem) for problem in found.pop("problems"))
    return CheckedShard(good=tuple(found.pop("good")), problems=problems, **found)


def _state(url: str, shard: Shard) -> str:
    if not is_local(url) or not Path(url).is_file():
        return shard.sha256
    stat = Path(url).stat()
    return f"{shard.sha256} {stat.st_size} {stat.st_mtime_ns}"


def _noted(path: Path, digest: str, make: Callable[[], Any]) -> Any:
    """What was noted under this digest, or else is made and noted now: plain values."""
    if path.exists():
        noted = json.loads(path.read_bytes())
        if noted["digest"] == digest:
            return noted["value"]
    content = json.dumps({"digest": digest, "value": make()}).encode()
    write_file(path, content)
    return json.loads(content)["value"]


def _check(url: str, shard: Shard, state: str) -> CheckedShard:
    problems = [Problem(shard.name, shard.name, fault) for fault in _faults_of_file(url, shard)]
    good, segments, captions = [], 0, 0
    for place, item in enumerate(read_shard(url, list(range(shard.samples)))):
        try:
            sample = _decoded(item)
        except DataError as error:
            name = f"{shard.name}/{item.key}" if isinstance(item, RawSample) else f"{shard.name}[{place}]"
            problems.append(Problem(name, shard.name, str(error).replace(url, shard.name)))
        else:
            good.append(place)
            segments, captions = segments + len(sample.segments), captions + len(sample.captions)
    return CheckedShard(state, tuple(good), segments, captions, tuple(problems))


def _faults_of_file(url: str, shard: Shard) -> Iterator[str]:
    """A shard on disk has to be the one that was described."""
    if not is_local(url) or not Path(url).is_file():
        return
    with Path(url).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield "has another checksum than dataset.json says: it is damaged or was changed"


def _decoded(item: RawSample | Damage) -> DecodedSample:
    if isinstance(item, Damage):
        raise DataError(item.text)
    return decode(item)


@dataclass(frozen=True)
class Chunk:
    """Some samples of a shard.

    Attributes:
        index: number of the chunk in the set.
        shard: number of the shard.
        url: of the shard.
        state: changes with the shard's file.
        places: of the samples in the shard, rising.
    """

    index: int
    shard: int
    url: str
    state: str
    places: tuple[int, ...]


def chunks(urls: Sequence[str], checked: Sequence[CheckedShard]) -> list[Chunk]:
    """The good samples in chunks that lie in one shard each."""
    found: list[Chunk] = []
    for number, (url, shard) in enumerate(zip(urls, checked, strict=True)):
        for start in range(0, len(shard.good), CHUNK):
            found.append(Chunk(len(found), number, url, shard.state, shard.good[start : start + CHUNK]))
    return found


def caption_chunk(chunk: Chunk, folder: Path, model: CaptionSource) -> list[str]:
    """Captions of a chunk, or those that an interrupted run noted."""
    note = folder / WORK / f"captions-{chunk.index:06d}.json"
    made_from = repr((chunk.shard, chunk.state, chunk.places))
    captions: list[str] = _noted(note, made_from, lambda: _captions(chunk, model.on(chunk.index)))
    return captions


def _captions(chunk: Chunk, model: Describes) -> list[str]:
    images = [image_tensor(decode_rgb(raw.members[raw.image])) for raw in _raw(chunk.url, chunk.places)]
    with _one_thread():
        pixels = torch.cat([model.pixels(image[None].to(model.mean.device)) for image in images])
        return [caption for batch in pixels.split(BATCH) for caption in model.caption(batch)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums on the processor depend on how they are shared out among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _raw(url: str, places: Sequence[int]) -> Iterator[RawSample]:
    for item in read_shard(url, list(places)):
        if isinstance(item, Damage):
            raise DataError(f"{item.text}; it was readable before: start again")
        yield item


@dataclass(frozen=True)
class CaptionedShard:
    """A shard that is to be written.

    Attributes:
        name: of the file.
        url: of the shard that it copies.
        state: changes with that shard's file.
        good: places of the samples that are copied.
        captions: one for each.
    """

    name: str
    url: str
    state: str
    good: tuple[int, ...]
    captions: tuple[str, ...]


def write_captioned(plan: CaptionedShard, folder: Path, digest: str) -> Shard:
    """Write one shard and its note, both complete or not at all."""
    return write_packed(plan.name, _packed(plan), folder, digest)


def _packed(plan: CaptionedShard) -> Iterator[Packed]:
    for raw, caption in zip(_raw(plan.url, plan.good), plan.captions, strict=True):
        record = json.loads(raw.members[RECORD]) | {"generated_caption": caption}
        content = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        yield raw.key, {**raw.members, RECORD: content}
