"""The demo with random weights and a handful of pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from odise_pl.errors import UserError
from odise_pl.toyworld import command, demo
from odise_pl.toyworld.demo import run_demo

TINY = ["backbone.weights=random", "clip.weights=random", "trainer.max_steps=2", "data.num_workers=0"]
PROGRAM = """
import sys
from pathlib import Path
from odise_pl.toyworld.demo import run_demo
if __name__ == "__main__":
    run_demo("label", Path("run"), Path("shards"), sys.argv[1:], counts=(16, 2, 2), rows=1)
"""


def tiny_demo(folder: Path) -> None:
    run_demo("label", folder / "run", folder / "shards", TINY, counts=(16, 2, 2), rows=2)


def test_demo_reuses_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tiny_demo(tmp_path)
    assert "| toy_open, novel |" in (run / "results.md").read_text()
    assert list(run.glob("**/events.out.tfevents.*"))
    width, height = Image.open(run / "pictures.png").size
    assert width >= 3 * 128
    assert height >= 2 * 128
    network = (run / "checkpoints" / "last.ckpt").resolve()
    written = network.stat().st_mtime_ns
    capsys.readouterr()
    tiny_demo(tmp_path)
    assert "toy_open, novel" in capsys.readouterr().out
    assert network.stat().st_mtime_ns == written, "nothing is trained again"
    (run / "results" / "toy_val" / "results.json").write_text("{")
    with pytest.raises(UserError, match="results"):
        tiny_demo(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_demo_resumes(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    settings = [*TINY[:2], "data.num_workers=0", "callbacks.checkpoint.every_n_train_steps=1"]
    many = [sys.executable, "-c", PROGRAM, *settings, "trainer.max_steps=20"]
    first = subprocess.Popen(many, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    wait_for(lambda: bool(list(tmp_path.glob("run/checkpoints/step_*.ckpt"))) or first.poll() is not None)
    first.send_signal(sent)
    assert first.wait(timeout=120) == code
    assert not (tmp_path / "run" / "finished.json").exists()
    subprocess.run(many, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    assert (tmp_path / "run" / "finished.json").exists()
    assert (tmp_path / "run" / "pictures.png").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_command_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: calls.append(arguments))
    app = command.typer.Typer()
    app.command()(command.demo)
    assert CliRunner().invoke(app, []).exit_code == 0
    options = ["caption", "--device", "gpu", "--shards", "s", "--set", "a=1", "--set", "b=2"]
    assert CliRunner().invoke(app, options).exit_code == 0
    assert CliRunner().invoke(app, ["labels"]).exit_code == 2
    assert calls == [
        ("label", Path("runs/demo"), Path("data/shards"), []),
        ("caption", Path("runs/demo_caption"), Path("s"), ["trainer=gpu", "a=1", "b=2"]),
    ]
