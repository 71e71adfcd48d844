"""The command line: fast help, unknown options, user errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from odise_pl.cli import app, main

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "lightning", "numpy", "PIL", "hydra", "transformers"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from odise_pl.cli import app\n"
        f"for arguments in [[], *([name] for name in {COMMANDS})]:\n"
        "    app([*arguments, '--help'], standalone_mode=False)\n"
        f"    assert not {HEAVY} & sys.modules.keys(), arguments"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage") == 1 + len(COMMANDS)


def test_unknown_option_is_named() -> None:
    done = CliRunner().invoke(app, ["predict", "net.ckpt", "a.jpg", "--words", "dog", "--nonsense"])
    assert done.exit_code == 2
    assert "--nonsense" in done.output


def test_user_error_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["odise", "report", "nowhere"])
    with pytest.raises(SystemExit, match="error: nowhere"):  # Python prints it and exits with status 1
        main()
