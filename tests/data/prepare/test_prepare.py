"""Packing a source: content, resuming, problems, other files in the folder, the command."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from mini_coco import CATEGORIES, make_coco, pack
from shard_members import members
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare import processes, shards
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import PROBLEMS, prepare
from odise_pl.data.prepare.panoptic import pack_panoptic
from odise_pl.data.prepare.source import Members, SourceSample
from odise_pl.data.records import DataError

REPOSITORY = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
COCO_MINI = Path(os.environ.get("ODISE_COCO_MINI", REPOSITORY / "../shared/coco_mini"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_files_are_packed_unchanged_with_contiguous_classes(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    pack(coco.root, tmp_path / "out")
    packed = members(tmp_path / "out" / "train2017-000000.tar")
    keys = [image["file_name"].removesuffix(".jpg") for image in coco.annotation["images"]]
    assert list(packed) == [f"{key}.{suffix}" for key in keys for suffix in ("jpg", "panoptic.png", "json")]
    assert packed[f"{keys[1]}.jpg"] == (coco.images / f"{keys[1]}.jpg").read_bytes()
    assert packed[f"{keys[1]}.panoptic.png"] == (coco.pngs / f"{keys[1]}.png").read_bytes()
    record = json.loads(packed[f"{keys[1]}.json"])
    image, annotation = coco.annotation["images"][1], coco.annotation["annotations"][1]
    assert (record["image_id"], record["height"], record["width"]) == (2, image["height"], image["width"])
    assert record["captions"] == ["caption 0 of image 2", "caption 1 of image 2"]
    for packed_segment, segment in zip(record["segments_info"], annotation["segments_info"], strict=True):
        index = [category["id"] for category in CATEGORIES].index(segment.pop("category_id"))
        assert packed_segment == segment | {"category": index, "isthing": bool(CATEGORIES[index]["isthing"])}


def test_manifest_describes_the_shards(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 12)
    pack(coco.root, tmp_path / "out", max_shard_bytes=30_000)
    manifest = open_shard_set(tmp_path / "out").manifest
    assert manifest.vocabulary.names == ("square", "disc", "ground")
    assert manifest.vocabulary.isthing == (True, True, False)
    counts = manifest.counts
    assert (counts.samples, counts.segments, counts.captions, counts.left_out) == (12, 36, 24, 0)
    assert manifest.source.sha256 == hashlib.sha256(coco.json.read_bytes()).hexdigest()
    assert len(manifest.shards) > 2
    for shard in manifest.shards:
        content = (tmp_path / "out" / shard.name).read_bytes()
        assert len(content) == shard.bytes <= 30_000
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert len(members(tmp_path / "out" / shard.name)) == 3 * shard.samples
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()


TWO_SAMPLES = 25_000  # bytes of a shard


class Interruption:
    """Packs samples, but is interrupted at one of them."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, sample: SourceSample) -> tuple[Members, int]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return pack_panoptic(sample)


def test_resumed_run_gives_same_bytes(tmp_path: Path) -> None:
    coco, out = make_coco(tmp_path / "coco", 8), tmp_path / "out"
    pack(coco.root, tmp_path / "whole", max_shard_bytes=TWO_SAMPLES)
    interrupted = replace(read_coco(coco.root, "train2017"), pack=Interruption(at=8 + 5))
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted, out, max_shard_bytes=TWO_SAMPLES)
    (out / shards._WORK / ".train2017-000001.tar.x").touch()  # of a process that was killed
    finished = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.tar")}
    assert 0 < len(finished) < len(list((tmp_path / "whole").glob("*.tar")))
    with pytest.raises(DataError, match="interrupted run with other options"):
        pack(coco.root, out, max_shard_bytes=50_000)
    image = coco.images / "000000000007.jpg"
    image.write_bytes((before := image.read_bytes()) + b"\0")
    with pytest.raises(DataError, match="files that have changed"):
        pack(coco.root, out, max_shard_bytes=TWO_SAMPLES)
    image.write_bytes(before)
    pack(coco.root, out, max_shard_bytes=TWO_SAMPLES)
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished


@pytest.mark.slow
def test_killed_run_ends_its_workers_and_is_resumed(tmp_path: Path) -> None:
    coco, out = make_coco(tmp_path / "coco", 400), tmp_path / "out"
    command = [sys.executable, "-m", "odise_pl", "prepare", "coco", "--split", "train2017"]
    command += ["--root", str(coco.root), "--out", str(out), "--workers", "2", "--max-shard-mb", "0.025"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not list(out.glob("*.tar")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "worker processes outlived the run"
    assert not (out / "dataset.json").exists()
    pack(coco.root, out, workers=2, max_shard_bytes=TWO_SAMPLES)
    pack(coco.root, tmp_path / "whole", max_shard_bytes=TWO_SAMPLES)
    assert contents(out) == contents(tmp_path / "whole")


def test_finished_set_is_not_overwritten(tmp_path: Path) -> None:
    coco, out = make_coco(tmp_path / "coco", 3), tmp_path / "out"
    pack(coco.root, out)
    before = contents(out)
    pack(coco.root, out)
    assert contents(out) == before
    with pytest.raises(DataError, match="already holds the shard set 'coco_train2017'"):
        pack(coco.root, out, max_shard_bytes=10**6)
    objects = coco.root / "annotations" / "instances_train2017.json"
    content = {"images": coco.annotation["images"], "annotations": [], "categories": CATEGORIES[:2]}
    objects.write_text(json.dumps(content))
    with pytest.raises(DataError, match="already holds"):
        pack(coco.root, out)
    objects.unlink()
    (out / "train2017-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="missing or damaged"):
        pack(coco.root, out)


def test_folder_with_other_files_is_rejected(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / shards._LOCK), pytest.raises(DataError, match=f"another run is writing to {out}"):
        pack(coco.root, out)
    (out / "other.tar").touch()
    (out / shards._WORK).mkdir()
    with pytest.raises(DataError, match=r"other\.tar is of another data set"):
        pack(coco.root, out)
    assert sorted(path.name for path in out.iterdir()) == [shards._WORK, "other.tar"]


def test_skip_bad_writes_the_rest_and_counts(tmp_path: Path) -> None:
    coco, out = make_coco(tmp_path / "coco", 5), tmp_path / "out"
    image, *maps = (coco.images / f"{2:012d}.jpg", coco.pngs / f"{2:012d}.png", coco.pngs / f"{4:012d}.png")
    before = {path: path.read_bytes() for path in (image, *maps)}
    for path in before:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"3 problems, entries.*: 2 .*{out / PROBLEMS}.*--skip-bad"):
        pack(coco.root, out)
    assert [path.name for path in out.iterdir()] == [PROBLEMS]
    fixed = shutil.copytree(out, tmp_path / "fixed")
    counts = pack(coco.root, out, skip_bad=True).counts
    assert (counts.samples, counts.left_out, counts.problems) == (3, 2, 3)
    keys = {name.split(".")[0] for name in members(out / "train2017-000000.tar")}
    assert keys == {f"{number:012d}" for number in (1, 3, 5)}
    problems = json.loads((out / PROBLEMS).read_text())
    assert (problems["left_out"], len(problems["problems"])) == (2, 3)
    for path, content in before.items():
        path.write_bytes(content)
    for folder in (fixed, tmp_path / "clean"):
        pack(coco.root, folder)
    assert contents(fixed) == contents(tmp_path / "clean")
    for path in coco.images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable sample"):
        pack(coco.root, tmp_path / "empty", skip_bad=True)


def test_worker_processes_keep_the_order_and_report_a_killed_one() -> None:
    assert processes.run(operator.neg, [5, 6, 7], 2, "testing") == [-5, -6, -7]
    with pytest.raises(DataError, match="a worker process was killed"):
        processes.run(os._exit, [1, 1, 1], 2, "testing")


def test_prepare_command(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 12)
    (coco.images / "000000000002.jpg").unlink()
    captions = coco.root / "annotations" / "captions_train2017.json"
    captions.write_text(captions.read_text().replace('"image_id": 1,', '"image_id": 99,'))
    options = ["--root", str(coco.root), "--split", "train2017", "--out", str(tmp_path / "out")]
    more = ["--workers", "1", "--max-shard-mb", "0.03", "--skip-bad", "--vocabulary", "annotation"]
    result = CliRunner().invoke(app, ["prepare", "coco", *options, *more], catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("note: 2 captions", "11 samples", "coco_train2017", "1 entries", PROBLEMS):
        assert word in result.stdout
    assert open_shard_set(tmp_path / "out").manifest.max_shard_bytes == 30_000
    listed = CliRunner().invoke(app, ["prepare", "--help"]).stdout
    assert all(name in listed for name in ("coco-instances", "ade150", "ade847", "pc59", "pc459", "pas21"))


@pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason=f"real COCO images are not at {COCO_MINI} (ODISE_COCO_MINI)"
)
def test_real_images(tmp_path: Path) -> None:
    manifest = pack(COCO_MINI, tmp_path / "out", "val2017")
    assert (manifest.counts.samples, manifest.counts.captions) == (60, 300)
    assert manifest.vocabulary.name == "coco_panoptic"
    assert len(manifest.vocabulary) == 133
