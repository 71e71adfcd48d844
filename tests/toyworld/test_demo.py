"""The demo with random weights and a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.errors import UserError
from odise_pl.toyworld import demo
from odise_pl.toyworld.demo import run_demo

TINY = ["backbone.first.weights=random", "clip.weights=random", "trainer.max_steps=1", "data.num_workers=0"]
TINY += ["global_batch=2", "data.batch_size=2", "criterion.num_points=64"]


def tiny_demo(folder: Path, *settings: str) -> None:
    run_demo("label", folder / "run", folder / "shards", [*TINY, *settings], counts=(2, 1, 2), rows=2)


@pytest.mark.slow
def test_demo_reuses_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_demo(tmp_path)
    assert "| toy_open, novel |" in (run / "results.md").read_text()
    assert list(run.glob("**/events.out.tfevents.*"))
    width, height = Image.open(run / "pictures.png").size
    assert width >= 3 * 128
    assert height >= 2 * 128
    network = (run / "checkpoints" / "last.ckpt").resolve()
    written = network.stat().st_mtime_ns
    (run / "results.md").unlink()
    tiny_demo(tmp_path)
    assert network.stat().st_mtime_ns == written, "nothing is trained again"
    assert (run / "results.md").exists()


@pytest.mark.parametrize("wrong", ["foo", "foo=1"])
def test_wrong_setting_is_refused_before_painting(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="foo"):
        tiny_demo(tmp_path, wrong)
    assert not list(tmp_path.iterdir())


def test_command_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: calls.append(arguments))
    options = ["caption", "--shards", "s", "--set", "a=1", "--set", "b=2"]
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert CliRunner().invoke(app, ["demo", *options]).exit_code == 0
    assert CliRunner().invoke(app, ["demo", "labels"]).exit_code == 2
    assert calls == [
        ("label", Path("runs/demo"), Path("data/shards"), ()),
        ("caption", Path("runs/demo_caption"), Path("s"), ["a=1", "b=2"]),
    ]
