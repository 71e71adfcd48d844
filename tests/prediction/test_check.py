"""``odise prepare check``: the contact sheet and the table of a shard set."""

from __future__ import annotations

from pathlib import Path

import mini_formats as mini
import numpy as np
from PIL import Image
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare.maps import read_maps
from odise_pl.data.prepare.packing import prepare
from odise_pl.prediction.check import check_set


def shards(folder: Path) -> Path:
    mini.maps(folder / "root")
    prepare(read_maps(folder / "root", instances="instances"), folder / "out")
    return folder / "out"


def test_summary_counts_what_was_labelled(tmp_path: Path) -> None:
    summary, sheet = check_set(open_shard_set(shards(tmp_path)), 3)
    classes, _ = mini.class_and_instance_maps()
    assert [summary.segments[index] for index in range(3)] == [3, 9, 3]  # two cats and a crowd of them
    assert [summary.images[index] for index in range(3)] == [3, 3, 3]
    assert summary.pixels[-1] == 3 * (classes == 255).sum()
    assert summary.sizes == [(40, 56)] * 3
    rows = {row[0]: row[1:] for row in summary.table().rows}
    assert rows["cat"][:3] == ("thing", "3", "9")
    colours = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)
    assert len(colours) > 100  # pictures, tinted


def test_command_writes_the_sheet_and_names_damage(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    arguments = ["prepare", "check", str(folder), "--out", str(tmp_path / "new" / "a.png"), "--count", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "dog" in done.output
    with Image.open(tmp_path / "new" / "a.png") as sheet:
        assert sheet.width > sheet.height  # two pictures in a row
    (shard,) = folder.glob("*.tar")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert shard.name in done.output
