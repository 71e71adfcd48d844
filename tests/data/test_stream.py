"""Batches: content, order, and distribution to ranks and workers."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mini_coco import make_coco, pack
from PIL import Image
from shard_members import unlabel

from odise_pl.data import reading, stream
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import EvalResize, LargeScaleJitter
from odise_pl.structures import Batch

KEYS = [f"{number:012d}" for number in range(1, 24)]


def data(folder: Path | str, **options: object) -> PanopticDataModule:
    """Small batches for training and evaluation on a set, loaded in this process."""
    small = {"batch_size": 2, "num_workers": 0, "image_size": 64, "eval_short_side": 48, "eval_long_side": 64}
    return PanopticDataModule(train=str(folder), **({"val": str(folder)} | small | options))  # type: ignore[arg-type]


def train(module: PanopticDataModule, epoch: int = 0, first: int = 0) -> list[Batch]:
    """The training batches of an epoch from number ``first`` on."""
    loader = module.train_dataloader()
    loader.used = epoch * len(loader) + first
    return list(loader)


def evaluated(module: PanopticDataModule) -> list[Batch]:
    return list(module.val_dataloader())  # type: ignore[arg-type]


def keys(batches: Iterable[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def fingerprints(batches: Iterable[Batch]) -> list[tuple[object, ...]]:
    """Keys, words and a checksum of the tensors of each batch."""
    return [(batch.keys, batch.words, _checksum(batch)) for batch in batches]


def _checksum(batch: Batch) -> str:
    digest = hashlib.sha256()
    for tensor in (batch.images, *(t for one in batch.targets for t in (one.labels, one.masks))):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_training_batches(shards: Path) -> None:
    batches = train(data(shards))
    assert len(batches) == 11
    assert len(set(keys(batches))) == 22
    for batch in batches:
        assert batch.images.shape == (2, 3, 64, 64)
        assert (batch.truths, batch.labelled, batch.words) == ((None, None), (True, True), ((), ()))
        assert batch.skipped == ()
        for image_id, key, captions, targets in zip(
            batch.image_ids, batch.keys, batch.captions, batch.targets, strict=True
        ):
            assert key == f"{image_id:012d}"
            assert captions == (f"caption 0 of image {image_id}", f"caption 1 of image {image_id}")
            assert set(targets.labels.tolist()) <= {0, 2}  # the discs are a crowd
            assert targets.masks.any(dim=(1, 2)).all()


def test_evaluation_batches(shards: Path) -> None:
    module = data(shards, num_workers=2, eval_batch_size=2, words=8)
    batches = evaluated(module)
    assert len(batches) == len(module.val_dataloader()) == 12  # type: ignore[arg-type]
    assert sorted(keys(batches)) == KEYS
    for batch in batches:
        for truth, size, targets in zip(batch.truths, batch.original_sizes, batch.targets, strict=True):
            assert truth is not None
            ids, segments = truth.panoptic.ids, truth.panoptic.segments
            assert (truth.instances, truth.semantic) == (None, None)
            assert (ids.dtype, ids.shape) == (torch.int32, size)
            assert set(ids.unique().tolist()) == {0, *(segment.id for segment in segments)}
            assert [(s.category, s.isthing, s.iscrowd) for s in segments] == [
                (0, True, False),
                (1, True, True),
                (2, False, False),
            ]
            assert len(targets.labels) == 0
        assert not any(batch.words)
    truth = batches[0].truths[0]
    png = shards.parent / "coco" / "annotations" / "panoptic_train2017" / "000000000001.png"
    pixels = np.asarray(Image.open(png)).astype(np.int64)
    assert truth is not None
    np.testing.assert_array_equal(truth.panoptic.ids.numpy(), pixels @ (1, 256, 65536))


def test_training_without_augmentation_equals_evaluation(shards: Path) -> None:
    module = data(shards, batch_size=1, augment="none", shuffle_buffer=0)
    seen = {batch.keys[0]: batch for batch in evaluated(module)}
    for batch in train(module):
        assert torch.equal(batch.images, seen[batch.keys[0]].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_at_any_batch(shards: Path, workers: int) -> None:
    options = {"num_workers": workers, "shuffle_buffer": 5, "words": 8}
    loader = data(shards, **options).train_dataloader()
    whole = [fingerprints(loader) for _ in range(2)]
    assert set(whole[0][0][0] + whole[0][1][0]) != set(whole[1][0][0] + whole[1][1][0])  # type: ignore[operator]
    for epoch, first in ((0, 3), (1, 8), (1, 0)):
        assert fingerprints(train(data(shards, **options), epoch, first)) == whole[epoch][first:]


def test_words_do_not_change_augmentation(shards: Path) -> None:
    for batch, other in zip(train(data(shards, words=8)), train(data(shards)), strict=True):
        assert all(len(words) == 8 for words in batch.words)
        assert torch.equal(batch.images, other.images)


def test_loading_keeps_global_random_state(shards: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert len(train(data(shards, num_workers=1))) == 11
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_resume_opens_only_remaining_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = reading.gopen
    monkeypatch.setattr(reading, "gopen", lambda url: (opened.append(url), original(url))[1])
    module = data(shards, shuffle_buffer=2)
    train(module)
    whole = len(opened)
    opened.clear()
    assert len(train(module, 0, 10)) == 1
    assert len(opened) <= 3 < whole


def test_ranks_share_samples_without_overlap(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, ranks, workers = open_shard_set(shards), 4, 3
    training, evaluation = TrainPlan(found.sizes, 1, ranks), EvalPlan(found.sizes, 2, ranks)
    trained, scored, lengths = [], [], []
    for rank in range(ranks):
        own: list[str] = []
        for worker in range(workers):
            monkeypatch.setattr(stream, "worker_position", lambda place=(worker, workers): place)
            own += keys(TrainStream(found.urls, training, LargeScaleJitter(32), rank))
            scored += keys(EvalStream(found.urls, evaluation, EvalResize(32, 32), rank))
        lengths.append(len(own))
        trained += own
    assert set(lengths) == {23 // ranks}
    assert len(set(trained)) == len(trained)
    assert sorted(scored) == KEYS


def test_ranks_take_same_number_of_evaluation_steps(shards: Path) -> None:
    module = data(shards, eval_batch_size=8)  # three batches
    loaders = [module.eval_loader("val", (rank, 2)) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [2, 2]
    assert [[batch.number for batch in loader] for loader in loaders] == [[0, -1], [1, 2]]
    nothing = module.eval_loader("val", (0, 1), frozenset({0, 1, 2}))
    assert [(batch.number, len(batch)) for batch in nothing] == [(-1, 0)]


def test_unlabelled_images_are_only_trained_on(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    pack(coco.root, tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*.tar")
    unlabel(shard, "1")
    (batch,) = train(data(tmp_path / "out", augment="none"))
    targets = [len(one.labels) for one in batch.targets]
    assert sorted(zip(batch.image_ids, batch.labelled, targets, strict=True)) == [(1, False, 0), (2, True, 2)]
    batches = evaluated(data(tmp_path / "out"))
    assert [batch.image_ids for batch in batches if len(batch)] == [(2,)]
    assert sum(len(batch.skipped) for batch in batches) == 1


# URLs


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shards))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset opens http URLs with curl")
def test_http_urls_and_missing_shard(shards: Path, server: str) -> None:
    expected = fingerprints(evaluated(data(shards)))
    for name in ("", "/dataset.json"):
        assert fingerprints(evaluated(data(server + name))) == expected
    found = open_shard_set(server)
    urls = (f"{server}/gone.tar", *found.urls[1:])
    batches = list(EvalStream(urls, EvalPlan(found.sizes), EvalResize(32, 32)))
    assert sum(map(len, batches)) == 23 - found.sizes[0]
    assert {text.partition(": ")[0] for batch in batches for text in batch.skipped} == {f"{server}/gone.tar"}


@pytest.mark.parametrize("url", ["pipe:cat {}/dataset.json", "file://{}"])
def test_pipe_and_file_urls(shards: Path, url: str) -> None:
    assert fingerprints(train(data(url.format(shards)))) == fingerprints(train(data(shards)))
