from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import pack
from mini_coco import CATEGORIES, make_coco
from slow_prepare import SHARD_BYTES

from odise_pl.data.manifest import Origin, check_shards
from odise_pl.data.prepare.checks import Chunk, check_chunk
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import PROBLEMS, settle_problems
from odise_pl.data.prepare.shards import WORK, write_packed
from odise_pl.data.records import DataError, Examined, Problem, SourceSample

REPOSITORY = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
SLOW = Path(__file__).with_name("slow_prepare.py")
COCO_MINI = Path(os.environ.get("ODISE_COCO_MINI", REPOSITORY / "../shared/coco_mini"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def test_samples_are_packed_verbatim_with_contiguous_classes(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    assert pack(coco.root, tmp_path / "out") == 0
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
        index = [category["id"] for category in CATEGORIES].index(segment["category_id"])
        assert packed_segment == {
            "id": segment["id"],
            "category": index,
            "isthing": bool(CATEGORIES[index]["isthing"]),
            "iscrowd": bool(segment["iscrowd"]),
            "area": segment["area"],
            "bbox": segment["bbox"],
        }


def test_manifest_describes_the_shards(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 12)
    assert pack(coco.root, tmp_path / "out", "--max-shard-mb", "0.03") == 0
    manifest = check_shards(tmp_path / "out").manifest
    assert [c.name for c in manifest.vocabulary.categories] == ["square", "disc", "ground"]
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


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 70)  # more than one chunk of checks
    for workers in ("1", "2"):
        assert pack(coco.root, tmp_path / workers, "--workers", workers, "--max-shard-mb", "0.05") == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert not (tmp_path / "1" / WORK).exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path: Path, workers: str) -> None:
    coco = make_coco(tmp_path / "coco", 40)
    limit = ("--max-shard-mb", str(SHARD_BYTES / 1e6))
    assert pack(coco.root, tmp_path / "whole", *limit) == 0
    out = tmp_path / "killed"
    kill_after_first_shard(coco.root, out, workers)
    finished = [shard.name for shard in out.glob("*.tar")]
    assert not (out / "dataset.json").exists()
    assert 0 < len(finished) < len(list((tmp_path / "whole").glob("*.tar")))
    times = {name: (out / name).stat().st_mtime_ns for name in finished}
    assert pack(coco.root, out, *limit) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == times


def kill_after_first_shard(root: Path, out: Path, workers: str) -> None:
    """Start a slow run and kill it when its first shard is done."""
    process = subprocess.Popen([sys.executable, str(SLOW), str(root), str(out), workers], env=ENVIRONMENT)
    while not list(out.glob("*.tar")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "worker processes outlived the run"


def test_an_interrupted_run_is_not_continued_with_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 40)
    kill_after_first_shard(coco.root, tmp_path / "out", "1")
    assert pack(coco.root, tmp_path / "out", "--max-shard-mb", "0.04") == 1
    assert "interrupted run with other options" in capsys.readouterr().err
    os.utime(coco.images / "000000000007.jpg", (0, 0))
    assert pack(coco.root, tmp_path / "out", "--max-shard-mb", str(SHARD_BYTES / 1e6)) == 1
    assert "files that have changed since" in capsys.readouterr().err


def test_objects_that_change_are_checked_again(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    examined = []

    def examine(sample: SourceSample) -> Examined:
        examined.append(sample.instances)
        return Examined((), (1,), 1)

    (sample,) = read_coco(coco.root, "train2017").samples
    (tmp_path / ".prepare").mkdir()
    for instances in (None, (), ()):
        check_chunk(Chunk(0, (replace(sample, instances=instances),)), tmp_path, examine)
    assert examined == [None, ()]


def test_a_finished_set_is_kept_and_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    assert pack(coco.root, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert pack(coco.root, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == before
    assert pack(coco.root, tmp_path / "out", "--max-shard-mb", "1") == 1
    assert "already holds the shard set 'coco_train2017'" in capsys.readouterr().err
    (tmp_path / "out" / "train2017-000000.tar").write_bytes(b"")
    assert pack(coco.root, tmp_path / "out") == 1
    assert "missing or damaged" in capsys.readouterr().err


def test_objects_are_of_what_a_finished_set_is_made_from(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    assert pack(coco.root, tmp_path / "out") == 0
    objects = {"images": coco.annotation["images"], "annotations": [], "categories": CATEGORIES[:2]}
    path = coco.root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(objects))
    assert pack(coco.root, tmp_path / "out") == 1
    assert pack(coco.root, tmp_path / "with") == 0
    path.unlink()
    assert pack(coco.root, tmp_path / "with") == 1
    assert pack(coco.root, tmp_path / "out") == 0


def test_a_folder_with_other_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.tar").touch()
    assert pack(coco.root, tmp_path / "out") == 1
    assert "holds other.tar" in capsys.readouterr().err
    (coco.images / "000000000001.jpg").write_bytes(b"")
    (tmp_path / "out" / WORK).mkdir()
    assert pack(coco.root, tmp_path / "out") == 1
    assert "holds other.tar" in capsys.readouterr().err
    assert (tmp_path / "out" / "other.tar").exists()


def test_problems_undo_what_the_command_has_written_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / WORK).mkdir(parents=True)
    write_packed("a.tar", [], folder, "")
    (folder / "mine.tar").touch()
    problems = [Problem("a", "b", "c")]
    with pytest.raises(DataError, match="1 problem in 1 entry"):
        settle_problems(Origin("coco", "a", "b", "c"), problems, folder, skip_bad=False)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.tar", PROBLEMS]


def test_a_second_run_in_the_same_folder_is_kept_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    (tmp_path / "out" / WORK).mkdir(parents=True)
    with (tmp_path / "out" / WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pack(coco.root, tmp_path / "out") == 1
    assert "another run is writing" in capsys.readouterr().err
    assert pack(coco.root, tmp_path / "out") == 0


def test_skip_bad_writes_the_rest_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_coco(tmp_path / "coco", 5)
    (coco.images / "000000000002.jpg").unlink()
    (coco.pngs / "000000000002.png").write_bytes(b"no png")
    (coco.pngs / "000000000004.png").write_bytes(b"no png")
    out = tmp_path / "out"
    assert pack(coco.root, out) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 3 problems in 2 entries (")
    assert str(out / PROBLEMS) in error
    assert "--skip-bad" in error
    assert [path.name for path in out.iterdir()] == [PROBLEMS]
    assert pack(coco.root, out, "--skip-bad") == 0
    assert "3 samples, shards: 1" in (report := capsys.readouterr().out)
    assert "2 entries were left out" in report
    packed = members(out / "train2017-000000.tar")
    assert {name.split(".")[0] for name in packed} == {f"{number:012d}" for number in (1, 3, 5)}
    counts = check_shards(out).manifest.counts
    assert (counts.samples, counts.left_out, counts.problems) == (3, 2, 3)
    problems = json.loads((out / PROBLEMS).read_text())
    assert (problems["left_out"], len(problems["problems"])) == (2, 3)


def test_mended_problems_leave_no_trace(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    png = (coco.pngs / "000000000002.png").read_bytes()
    (coco.pngs / "000000000002.png").write_bytes(b"no png")
    assert pack(coco.root, tmp_path / "out") == 1
    (coco.pngs / "000000000002.png").write_bytes(png)
    assert pack(coco.root, tmp_path / "out") == 0
    assert pack(coco.root, tmp_path / "clean") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_nothing_left_to_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    shutil.rmtree(coco.images)
    coco.images.mkdir()
    assert pack(coco.root, tmp_path / "out", "--skip-bad") == 1
    assert "no sample is left" in capsys.readouterr().err


def test_the_command_starts_without_torch() -> None:
    code = "import sys, odise_pl.data.prepare.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENVIRONMENT).returncode == 0


@pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason=f"real COCO images are not at {COCO_MINI} (ODISE_COCO_MINI)"
)
@pytest.mark.parametrize(("split", "images", "captions"), [("train2017", 100, 0), ("val2017", 60, 300)])
def test_real_images(tmp_path: Path, split: str, images: int, captions: int) -> None:
    assert pack(COCO_MINI, tmp_path / "out", split=split) == 0
    manifest = check_shards(tmp_path / "out").manifest
    assert (manifest.counts.samples, manifest.counts.captions) == (images, captions)
    assert manifest.vocabulary.name == "coco_panoptic"
    assert len(manifest.vocabulary) == 133
