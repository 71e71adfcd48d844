"""Damaged samples and shards, and loader processes that fail."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shard_members import members, rewrite
from test_stream import KEYS, data, evaluated, fingerprints, keys, train

from odise_pl.data.loader import BatchSource
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import EvalResize

Change = Callable[[bytes], bytes | None]


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def shard_keys(shard: Path) -> list[str]:
    return [name.removesuffix(".json") for name in members(shard) if name.endswith(".json")]


@pytest.mark.parametrize("key", ["../x", "x\x1b[2J", "x\udc80"], ids=ascii)
def test_unsafe_key_is_damage(copied: Path, key: str) -> None:
    first = copied / "train2017-000000.tar"
    content = members(first)
    with tarfile.open(first, "w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data_ in content.items():
            info = tarfile.TarInfo(name.replace("000000000001.", f"{key}."))
            info.size = len(data_)
            tar.addfile(info, io.BytesIO(data_))
    batches = evaluated(data(copied))
    assert len(keys(batches)) == 22
    (text,) = [text for batch in batches for text in batch.skipped]
    assert ascii(key) in text
    assert text.isprintable()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_size(_: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, "jpeg")
    return out.getvalue()


def record(**fields: object) -> Change:
    """Changes fields of a record."""
    return lambda content: json.dumps(json.loads(content) | fields).encode()


def segments(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    """Changes the segments of a record."""

    def changed(content: bytes) -> bytes:
        parsed = json.loads(content)
        change(parsed["segments_info"])
        return json.dumps(parsed).encode()

    return changed


def segment(**fields: object) -> Change:
    """Changes the first segment of a record."""
    return segments(lambda items: items[0].update(fields))


@pytest.mark.parametrize(
    ("member", "change", "cause"),
    [
        ("jpg", half, "member jpg"),
        ("panoptic.png", lambda content: b"?" * len(content), "member panoptic.png"),
        ("panoptic.png", lambda _: None, "member panoptic.png"),
        ("json", lambda _: b'{"image_id": 1}', "member json has no captions"),
        ("json", lambda _: b"[" * 100_000, "member json"),
        ("json", segments(lambda items: items.append(items[0])), "member json has two segments"),
        ("json", segments(list.pop), "panoptic.png has ids"),
        ("json", record(image_id=float("inf")), "member json has image_id"),
        ("json", record(captions=[1, None]), "member json has captions"),
        ("json", record(segments_info={}), "member json has segments_info"),
        ("json", record(generated_caption=5), "member json has generated_caption"),
        *(("json", segment(category=x), "has category") for x in ("1", 1000)),
        ("json", segment(isthing=None), "member json has no isthing"),
        ("json", segment(isthing=False), "member json has category"),
        ("jpg", other_size, "image of (9, 9), panoptic map of"),
    ],
)
def test_damaged_member_is_named(copied: Path, member: str, change: Change, cause: str) -> None:
    first = copied / "train2017-000000.tar"
    rewrite(first, lambda name, old: change(old) if name == f"{KEYS[0]}.{member}" else old)
    batches = evaluated(data(copied, limit_samples=4))
    assert keys(batches) == KEYS[1:4]
    (text,) = [text for batch in batches for text in batch.skipped]
    assert text.startswith(f"{first}/{KEYS[0]}: ")
    assert cause in text


def test_damaged_sample_is_replaced_in_training(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = copied / "train2017-000000.tar"
    rewrite(first, lambda name, old: half(old) if name == f"{KEYS[0]}.jpg" else old)
    loader = data(copied, num_workers=2, limit_samples=22).train_dataloader()
    with caplog.at_level(logging.WARNING):
        epochs = [list(loader), list(loader)]
    for batches in epochs:
        used = keys(batches)
        assert (len(batches), len(used), len(set(used))) == (11, 22, 21)
        assert KEYS[0] not in used
        assert sum(len(batch.skipped) for batch in batches) == 1
    assert caplog.text.count(f"{first}/{KEYS[0]}: ") == 1


def truncate(shard: Path) -> None:
    shard.write_bytes(half(shard.read_bytes()))


def cut_at_a_member(shard: Path) -> None:
    # A tar file that ends between two members looks complete.
    with tarfile.open(shard) as tar:
        second = [info for info in tar if info.name.endswith(".jpg")][1]
    shard.write_bytes(shard.read_bytes()[: second.offset])


def no_tar(shard: Path) -> None:
    shard.write_text("<html>not found</html>" * 100)


@pytest.mark.parametrize(
    ("damage", "workers"),
    [(truncate, 0), (cut_at_a_member, 0), (no_tar, 0), (Path.unlink, 2)],
)
def test_damaged_shard_is_named_and_others_are_read(
    copied: Path, damage: Callable[[Path], None], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    shard = copied / "train2017-000001.tar"
    lost = set(shard_keys(shard))
    if damage is cut_at_a_member:
        lost.remove(shard_keys(shard)[0])
    damage(shard)
    module = data(copied, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = train(module)
    assert len(batches) == 11
    assert len(set(keys(batches))) >= 22 - len(lost)
    texts = {text for batch in batches for text in batch.skipped}
    assert all(text.startswith(str(shard)) for text in texts)
    assert caplog.text.count(str(shard)) == len(texts) > 0
    scored = evaluated(module)
    good = set(keys(scored))
    assert len(good) == len(keys(scored))
    assert sum(len(batch) + len(batch.skipped) for batch in scored) == 23
    if damage is not truncate:
        assert good == set(KEYS) - lost


def test_resume_with_damage_gives_same_batches(copied: Path) -> None:
    truncate(copied / "train2017-000001.tar")
    (copied / "train2017-000003.tar").unlink()
    module = data(copied, num_workers=2, shuffle_buffer=4)
    whole = fingerprints(train(module))
    for first in (1, 5, 10):
        assert fingerprints(train(module, 0, first)) == whole[first:]


def test_timeout_is_one_clear_error(shards: Path) -> None:
    found = open_shard_set(shards)
    hanging = tuple(f"pipe:sleep 2; cat {url}" for url in found.urls)
    stream = EvalStream(hanging, EvalPlan(found.sizes), EvalResize(32, 32))
    with pytest.raises(DataError, match=r"data\.timeout"):
        list(BatchSource(num_workers=1, timeout=0.5).batches(stream, 1))


def test_killed_loader_process_is_one_clear_error(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch notices immediately or, after Lightning has replaced its signal handler, at the timeout
    module = data(shards, num_workers=1, timeout=2)
    monkeypatch.setattr(TrainStream, "_sample", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"killed .*data\.num_workers"):
        train(module)


def test_lost_batches_are_one_clear_error(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, make = data(shards, num_workers=1, timeout=20), TrainStream._sample
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def limited(self: TrainStream, *arguments: object) -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # of shared memory, too, as a full /dev/shm
        return make(self, *arguments)

    monkeypatch.setattr(TrainStream, "_sample", limited)
    last = len(module.train_dataloader()) - 1
    with pytest.raises(DataError, match=r"lost 1 batches.*data\.num_workers"):
        train(module, first=last)


def test_set_without_readable_sample_is_one_clear_error(copied: Path) -> None:
    for shard in copied.glob("*.tar"):
        no_tar(shard)
    for read in (train, evaluated):
        with pytest.raises(DataError, match=r"^no sample .*can be read.*\.tar") as error:
            read(data(copied, num_workers=1))
        assert "Traceback" not in str(error.value)
