"""The command line: fast help, unknown options, user errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from odise_pl.cli import app

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = ("torch", "lightning", "numpy", "PIL", "hydra", "transformers")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(command: str | None) -> None:
    arguments = [*([command] if command else []), "--help"]
    code = (
        "import sys; from odise_pl.cli import app\n"
        f"try: app({arguments})\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_unknown_option_is_named() -> None:
    done = CliRunner().invoke(app, ["predict", "net.ckpt", "a.jpg", "--words", "dog", "--nonsense"])
    assert done.exit_code == 2
    assert "--nonsense" in done.output


def test_user_error_has_no_traceback() -> None:
    command = [sys.executable, "-m", "odise_pl", "report", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere")
    assert "Traceback" not in done.stderr
