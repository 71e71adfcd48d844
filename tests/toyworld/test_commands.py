"""Programs that are ended together."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from odise_pl.toyworld.commands import CommandError, Programs, setting

# what a program does that saves when it is asked to end: it says so, and what it was asked by
SAVING = """
import pathlib, signal, sys, time
def save(number, frame):
    with open(sys.argv[1], "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    time.sleep(0.5)  # longer than subprocess.run gives a program after Ctrl-C
    with open(sys.argv[1], "a") as file:
        file.write("saved")
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may be run by nohup
signal.signal(signal.SIGINT, signal.default_int_handler)
from odise_pl.toyworld.commands import Programs
with Programs() as programs:
    programs.call("-c", sys.argv[1], sys.argv[2])
    programs.call("-c", "print('another')")
"""


@pytest.mark.parametrize(
    ("sent", "arrived", "code"),
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGTERM", 129)],
)
def test_a_program_that_is_asked_to_end_by_way_of_its_parent_saves_and_none_comes_after(
    sent: signal.Signals, arrived: str, code: int, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, SAVING, str(note)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    while parent.stdout.readline() != "ready\n":
        pass
    parent.send_signal(sent)
    rest, _ = parent.communicate(timeout=30)
    assert parent.returncode == code
    assert note.read_text() == f"{arrived}\nsaved"
    assert "another" not in rest


def test_handlers_are_as_before_and_failures_name_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Programs() as programs, pytest.raises(CommandError, match="raise SystemExit"):
        programs.call("-c", "raise SystemExit(3)")
    assert signal.getsignal(signal.SIGTERM) is before


def test_threads_are_those_that_are_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    Programs().call("-c", "import os; print(os.environ['OMP_NUM_THREADS'])", threads=3)
    assert capfd.readouterr().out.endswith("\n3\n")


@pytest.mark.parametrize(
    "path",
    [
        "runs/demo",
        "2024",
        "null",
        "true",
        "runs/näme",
        "a,b/c",
        "a=b/c",
        "a[0]/{b}",
        "it's/a b",
        "#/~&",
        "C:\\d\\'",
    ],
)
def test_a_path_reaches_train_as_it_is(path: str) -> None:
    override = OverridesParser.create().parse_override(setting("paths.shards", Path(path)))
    value = override.value()
    assert getattr(value, "text", value) == path
    assert not override.is_sweep_override()
