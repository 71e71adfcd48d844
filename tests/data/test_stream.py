from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import shutil
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pack
from mini_coco import make_coco
from PIL import Image

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.loader import LoaderOptions, TrainLoader
from odise_pl.data.manifest import check_shards
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import EvalResize, LargeScaleJitter
from odise_pl.structures import Batch


def data(folder: Path | str, **options: object) -> PanopticDataModule:
    defaults = {
        "batch_size": 2,
        "num_workers": 0,
        "image_size": 64,
        "eval_short_side": 48,
        "eval_long_side": 64,
    }
    return PanopticDataModule(train=str(folder), val=str(folder), **(defaults | options))  # type: ignore[arg-type]


def fingerprint(batch: Batch) -> tuple[tuple[str, ...], str]:
    """Keys and a checksum of every tensor."""
    digest = hashlib.sha256()
    for tensor in (batch.images, *(t for one in batch.targets for t in (one.labels, one.masks))):
        digest.update(tensor.numpy().tobytes())
    return batch.keys, digest.hexdigest()


def keys(batches: object) -> list[str]:
    return [key for batch in batches for key in batch.keys]  # type: ignore[attr-defined]


def test_training_batches(shards: Path) -> None:
    batches = list(data(shards).train_dataloader())
    assert len(batches) == 11
    assert len(set(keys(batches))) == 22
    for batch in batches:
        assert batch.images.shape == (2, 3, 64, 64)
        assert batch.truths == (None, None)
        assert batch.skipped == ()
        for image_id, key, captions, targets in zip(
            batch.image_ids, batch.keys, batch.captions, batch.targets, strict=True
        ):
            assert key == f"{image_id:012d}"
            assert captions == (f"caption 0 of image {image_id}", f"caption 1 of image {image_id}")
            assert set(targets.labels.tolist()) <= {0, 2}  # the discs are a crowd
            assert targets.masks.any(dim=(1, 2)).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_sample_once_with_its_truth(shards: Path, workers: int) -> None:
    module = data(shards, num_workers=workers, eval_batch_size=2)
    loader = module.val_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)  # type: ignore[arg-type]
    assert sorted(keys(batches)) == [f"{number:012d}" for number in range(1, 24)]
    for batch in batches:
        for truth, size, targets in zip(batch.truths, batch.original_sizes, batch.targets, strict=True):
            assert truth is not None
            ids, segments = truth.panoptic.ids, truth.panoptic.segments
            assert (truth.instances, truth.semantic) == (None, None)
            assert ids.dtype == torch.int32
            assert ids.shape == size
            assert set(ids.unique().tolist()) == {0, *(segment.id for segment in segments)}
            assert [s.category for s in segments] == [0, 1, 2]
            assert [s.isthing for s in segments] == [True, True, False]
            assert [s.iscrowd for s in segments] == [False, True, False]
            assert len(targets.labels) == 0


def test_evaluation_truth_is_that_of_the_png(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    assert pack(coco.root, tmp_path / "out") == 0
    (first, _) = data(tmp_path / "out").val_dataloader()
    pixels = np.asarray(Image.open(coco.pngs / "000000000001.png")).astype(np.int64)
    expected = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    assert (first.truths[0].panoptic.ids.numpy() == expected).all()


def test_without_augmentation_training_sees_what_evaluation_sees(shards: Path) -> None:
    module = data(shards, batch_size=1, augment="none", shuffle_buffer=0)
    evaluated = {batch.keys[0]: batch for batch in module.val_dataloader()}
    for batch in module.train_dataloader():
        other = evaluated[batch.keys[0]]
        assert torch.equal(batch.images, other.images)
        assert batch.valid_sizes == other.valid_sizes


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_place_of_any_epoch_can_be_reached_directly(shards: Path, workers: int) -> None:
    module = data(shards, num_workers=workers, shuffle_buffer=5)
    loader = module.train_dataloader()
    whole = [[fingerprint(batch) for batch in loader] for _ in range(2)]
    assert whole[0] != whole[1]
    assert sorted(whole[0][0][0] + whole[0][1][0]) != sorted(whole[1][0][0] + whole[1][1][0])
    for epoch, first in ((0, 3), (1, 8), (1, 0)):
        resumed = data(shards, num_workers=workers, shuffle_buffer=5)
        resumed.set_position(epoch, first)
        assert [fingerprint(batch) for batch in resumed.train_dataloader()] == whole[epoch][first:]


def test_loading_leaves_the_global_random_state_alone(shards: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert len(list(data(shards, num_workers=1).train_dataloader())) == 11
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_reading_starts_at_the_shards_that_are_wanted(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from odise_pl.data import reading

    opened: list[str] = []
    original = reading.gopen
    monkeypatch.setattr(reading, "gopen", lambda url: (opened.append(url), original(url))[1])
    module = data(shards, shuffle_buffer=2)
    list(module.train_dataloader())
    whole = len(opened)
    opened.clear()
    module.set_position(0, 10)
    assert len(list(module.train_dataloader())) == 1
    assert len(opened) <= 3 < whole


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_ranks_share_the_samples_without_overlap(
    shards: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int
) -> None:
    from odise_pl.data import stream

    shard_set = check_shards(shards)
    train = TrainPlan(shard_set.sizes, 1, ranks)
    evaluation = EvalPlan(shard_set.sizes, 2, ranks)
    trained, evaluated, lengths = [], [], []
    for rank in range(ranks):
        own: list[str] = []
        for worker in range(workers):
            monkeypatch.setattr(stream, "worker_place", lambda place=(worker, workers): place)
            own += keys(TrainStream(shard_set.urls, train, LargeScaleJitter(32), rank))
            evaluated += keys(EvalStream(shard_set.urls, evaluation, EvalResize(32, 32), rank))
        lengths.append(len(own))
        trained += own
    assert set(lengths) == {23 // ranks}
    assert len(set(trained)) == len(trained)
    assert sorted(evaluated) == [f"{number:012d}" for number in range(1, 24)]


def test_few_samples_are_repeated_within_a_long_epoch(shards: Path) -> None:
    module = data(shards, limit_samples=4, epoch_length=40, num_workers=2)
    used = keys(module.train_dataloader())
    assert sorted(used) == sorted(10 * [f"{number:012d}" for number in range(1, 5)])
    for start in range(0, 20, 4):
        assert len(set(used[start * 2 : start * 2 + 2])) == 2
    assert keys(module.val_dataloader()) == [f"{number:012d}" for number in (1, 3, 2, 4)]


def test_a_shard_set_can_be_pickled_to_workers(shards: Path) -> None:
    shard_set = check_shards(shards)
    stream = TrainStream(shard_set.urls, TrainPlan(shard_set.sizes, 2), LargeScaleJitter(32))
    copy = pickle.loads(pickle.dumps(stream))
    assert [fingerprint(b) for b in copy] == [fingerprint(b) for b in stream]


# Damage


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def rewrite(shard: Path, change: Callable[[str, bytes], bytes | None]) -> list[str]:
    """Write a shard anew with changed members (None: left out); returns its keys."""
    with tarfile.open(shard) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            new = change(name, content)
            if new is not None:
                info = tarfile.TarInfo(name)
                info.size = len(new)
                tar.addfile(info, io.BytesIO(new))
    return [name.removesuffix(".json") for name, _ in members if name.endswith(".json")]


def shard_keys(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]


@pytest.mark.parametrize(
    "key", ["../x", "/x", "a/../../x", "./x", "a\\x", "x\n", "x\x1b[2J", "x\udc80"], ids=ascii
)
def test_a_key_that_is_no_file_name_is_damage(copied: Path, key: str) -> None:
    first = copied / "train2017-000000.tar"
    with tarfile.open(first) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(first, "w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name.replace("000000000001.", f"{key}."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    batches = list(data(copied).val_dataloader())
    assert len(keys(batches)) == 22
    (text,) = [text for batch in batches for text in batch.skipped]
    assert ascii(key) in text
    assert text.isprintable()


def damaged_image(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name == "000000000001.jpg" else content


def damaged_png(name: str, content: bytes) -> bytes:
    return b"?" * len(content) if name == "000000000001.panoptic.png" else content


def damaged_record(name: str, content: bytes) -> bytes:
    return b'{"image_id": 1}' if name == "000000000001.json" else content


def other_ids(name: str, content: bytes) -> bytes:
    if name != "000000000001.json":
        return content
    record = json.loads(content)
    record["segments_info"].pop()
    return json.dumps(record).encode()


def recorded(**fields: object) -> Callable[[str, bytes], bytes]:
    """Changes a record."""

    def change(name: str, content: bytes) -> bytes:
        is_it = name == "000000000001.json"
        return json.dumps(json.loads(content) | fields).encode() if is_it else content

    return change


def segment(**fields: object) -> Callable[[str, bytes], bytes]:
    """Changes the first segment of a record."""

    def change(name: str, content: bytes) -> bytes:
        if name != "000000000001.json":
            return content
        record = json.loads(content)
        record["segments_info"][0].update(fields)
        return json.dumps(record).encode()

    return change


def twice(name: str, content: bytes) -> bytes:
    if name != "000000000001.json":
        return content
    record = json.loads(content)
    record["segments_info"] *= 2
    return json.dumps(record).encode()


def nested(name: str, content: bytes) -> bytes:
    return b"[" * 100_000 if name == "000000000001.json" else content


def other_size(name: str, content: bytes) -> bytes:
    if name != "000000000001.jpg":
        return content
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, "jpeg")
    return out.getvalue()


def no_png(name: str, content: bytes) -> bytes | None:
    return None if name == "000000000001.panoptic.png" else content


@pytest.mark.parametrize(
    ("change", "cause", "workers"),
    [
        (damaged_image, "member jpg cannot be decoded", 0),
        (damaged_image, "member jpg cannot be decoded", 2),
        (damaged_png, "member panoptic.png cannot be decoded", 0),
        (damaged_record, "member json has no captions", 0),
        (nested, "member json is not JSON", 0),
        (twice, "member json has two segments of one id", 0),
        *((recorded(image_id=x), "member json has image_id", 0) for x in (float("inf"), 2**70, "1", True)),
        *((recorded(captions=x), "member json has captions", 0) for x in ("abc", [1, None], {"a": 1})),
        (recorded(segments_info={}), "member json has segments_info", 0),
        (recorded(generated_caption=5), "member json has generated_caption", 0),
        *((segment(category=x), "member json has category", 0) for x in (float("inf"), 2**70, "1", 1000, -1)),
        *((segment(isthing=x), "member json has isthing", 0) for x in (5, "1")),
        (segment(isthing=None), "member json has no isthing", 0),
        (segment(isthing=False), "member json has category", 0),
        (other_ids, "panoptic.png has ids that json lacks", 0),
        (other_size, "image of (9, 9), panoptic map of", 0),
        (no_png, "member panoptic.png is missing", 0),
    ],
)
def test_a_damaged_sample_is_named_once_and_replaced(
    copied: Path,
    change: Callable[[str, bytes], bytes | None],
    cause: str,
    workers: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = copied / "train2017-000000.tar"
    rewrite(first, change)
    module = data(copied, num_workers=workers, limit_samples=22)
    loader = module.train_dataloader()
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
        again = list(loader)
    assert len(batches) == len(again) == 11
    used = keys(batches)
    assert len(used) == 22
    assert len(set(used)) == 21
    assert "000000000001" not in used
    for skipped in ([text for batch in one for text in batch.skipped] for one in (batches, again)):
        (text,) = skipped
        assert text.startswith(f"{first}/000000000001: ")
        assert cause in text
    assert len([r for r in caplog.records if "left out" in r.getMessage()]) == 1
    evaluated = list(data(copied, num_workers=workers).val_dataloader())
    assert len(keys(evaluated)) == 22
    assert [cause in text for batch in evaluated for text in batch.skipped] == [True]
    assert sum(batch.left_out for batch in evaluated) == 1


def truncate(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])


def cut_at_a_member(shard: Path) -> None:
    # A tar file that ends between two members looks whole to a tar reader.
    with tarfile.open(shard) as tar:
        second = [info for info in tar if info.name.endswith(".jpg")][1]
    shard.write_bytes(shard.read_bytes()[: second.offset])


def no_tar(shard: Path) -> None:
    shard.write_text("<html>not found</html>" * 100)


def remove(shard: Path) -> None:
    shard.unlink()


@pytest.mark.parametrize(
    ("damage", "workers"),
    [(truncate, 0), (truncate, 2), (cut_at_a_member, 0), (no_tar, 0), (remove, 0), (remove, 2)],
)
def test_a_damaged_shard_is_named_and_the_rest_goes_on(
    copied: Path, damage: Callable[[Path], None], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    shard = copied / "train2017-000001.tar"
    lost = set(shard_keys(shard))
    if damage is cut_at_a_member:
        lost.remove(shard_keys(shard)[0])
    damage(shard)
    module = data(copied, num_workers=workers)
    loader = module.train_dataloader()
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert len(batches) == 11
    assert len(set(keys(batches))) >= 22 - len(lost)
    texts = [text for batch in batches for text in batch.skipped]
    assert texts
    assert all(text.startswith(str(shard)) for text in texts)
    assert any(str(shard) in record.getMessage() for record in caplog.records)
    evaluated = list(module.val_dataloader())
    good = set(keys(evaluated))
    assert len(good) == len(keys(evaluated))
    if damage is not truncate:
        assert good == {f"{number:012d}" for number in range(1, 24)} - lost
    assert any("samples of it are left out" in text for batch in evaluated for text in batch.skipped)
    assert sum(len(batch) + batch.left_out for batch in evaluated) == 23


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_with_damage_gives_the_same_batches(copied: Path, workers: int) -> None:
    truncate(copied / "train2017-000001.tar")
    remove(copied / "train2017-000003.tar")
    module = data(copied, num_workers=workers, shuffle_buffer=4)
    whole = [fingerprint(batch) for batch in module.train_dataloader()]
    for first in (1, 5, 10):
        resumed = data(copied, num_workers=workers, shuffle_buffer=4)
        resumed.set_position(0, first)
        assert [fingerprint(batch) for batch in resumed.train_dataloader()] == whole[first:]


def test_samples_of_a_worker_that_reads_nothing_are_counted_too(copied: Path) -> None:
    sizes, good = check_shards(str(copied)).sizes, 3
    for number in range(good, len(sizes)):
        no_tar(copied / f"train2017-{number:06d}.tar")
    batches = list(data(copied, num_workers=2).val_dataloader())
    assert any(not len(batch) for batch in batches)
    assert sum(batch.left_out for batch in batches) == sum(sizes[good:])
    assert sum(map(len, batches)) == sum(sizes[:good])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [truncate, remove])
def test_a_shard_that_is_lost_in_mid_epoch_is_named_and_the_epoch_goes_on(
    copied: Path, damage: Callable[[Path], None], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    module = data(copied, num_workers=workers, shuffle_buffer=1, prefetch_factor=1)
    whole = [batch.keys for batch in module.train_dataloader()]
    batches = iter(module.train_dataloader())
    begun = [next(batches).keys]
    (shard,) = [path for path in copied.glob("*.tar") if whole[-2][0] in shard_keys(path)]
    lost = set(shard_keys(shard))
    assert not {key for keys in whole[:4] for key in keys} & lost  # not read ahead
    damage(shard)
    with caplog.at_level(logging.WARNING):
        begun += [batch.keys for batch in batches]
    assert len(begun) == len(whole) == 11
    intact = [keys for keys in whole if not set(keys) & lost]
    assert set(intact) <= set(begun)
    assert f"left out: {shard}" in caplog.text


def loader(urls: tuple[str, ...], sizes: tuple[int, ...], options: LoaderOptions) -> TrainLoader:
    plan = TrainPlan(sizes, 2, buffer=1)
    return TrainLoader(lambda e, f: TrainStream(urls, plan, LargeScaleJitter(32), 0, e, f), 2, options)


def test_a_sample_that_takes_long_is_waited_for_and_named(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard_set = check_shards(shards)
    slow = tuple(f"pipe:sleep 0.5; cat {url}" for url in shard_set.urls)
    with caplog.at_level(logging.WARNING):
        batches = list(loader(slow, shard_set.sizes, LoaderOptions(1, slow=0.4)))
    assert len(keys(batches)) == len(set(keys(batches))) == 22
    assert "waited 1 s for images" in caplog.text or "waited 0 s for images" in caplog.text


def test_a_server_that_never_answers_ends_with_one_message(shards: Path) -> None:
    hanging = tuple(f"pipe:sleep 4; cat {url}" for url in check_shards(shards).urls)
    with pytest.raises(DataError, match=r"no batch has come for 1 s.*data\.timeout"):
        list(loader(hanging, check_shards(shards).sizes, LoaderOptions(1, timeout=1)))


def kill_worker(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_process_ends_with_one_message(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = data(shards, num_workers=1)
    monkeypatch.setattr(TrainStream, "_sample", kill_worker)
    with pytest.raises(DataError, match=r"a loader process was killed .*data\.num_workers"):
        list(module.train_dataloader())


def test_nothing_readable_ends_with_one_message(copied: Path) -> None:
    for shard in copied.glob("*.tar"):
        no_tar(shard)
    with pytest.raises(DataError, match=r"no sample of .* shards can be read"):
        list(data(copied).train_dataloader())
    with pytest.raises(DataError, match="no sample can be read"):
        list(data(copied).val_dataloader())
    with pytest.raises(DataError, match=r"^no sample of .* shards can be read") as from_a_loader_process:
        list(data(copied, num_workers=1).train_dataloader())
    assert "Traceback" not in str(from_a_loader_process.value)


# URLs


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shards))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="WebDataset opens http URLs with curl, which is missing"
)
@pytest.mark.parametrize("name", ["", "/dataset.json"])
def test_http(shards: Path, server: str, name: str) -> None:
    module = data(server + name)
    assert [fingerprint(b) for b in module.train_dataloader()] == [
        fingerprint(b) for b in data(shards).train_dataloader()
    ]


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="WebDataset opens http URLs with curl, which is missing"
)
def test_http_without_a_shard_is_reported(server: str) -> None:
    shard_set = check_shards(server)
    urls = (f"{server}/gone.tar", *shard_set.urls[1:])
    batches = list(EvalStream(urls, EvalPlan(shard_set.sizes), EvalResize(32, 32)))
    assert sum(map(len, batches)) == 23 - shard_set.sizes[0]
    (text,) = [text for batch in batches for text in batch.skipped]
    assert text.startswith(f"{server}/gone.tar: ")


def test_pipe(shards: Path) -> None:
    module = data(f"pipe:cat {shards}/dataset.json")
    assert [fingerprint(b) for b in module.train_dataloader()] == [
        fingerprint(b) for b in data(shards).train_dataloader()
    ]


def test_file_url(shards: Path) -> None:
    assert len(list(data(f"file://{shards}").train_dataloader())) == 11
