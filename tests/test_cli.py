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


def modules_after(code: str) -> set[str]:
    """The modules of a new process that ran ``code``."""
    show = f"{code}\nimport sys; print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("code", ["import odise_pl", "from odise_pl import load_vocabulary, Vocabulary"])
def test_package_and_vocabularies_import_no_torch(code: str) -> None:
    assert not {"torch", "numpy", "PIL"} & modules_after(code)


@pytest.mark.slow
def test_predict_imports_neither_lightning_nor_metrics() -> None:
    code = """
import os
os.environ.pop("OMP_WAIT_POLICY", None)
from odise_pl.runs.console import quiet_libraries
quiet_libraries()
from odise_pl.prediction.predict import predict
assert os.environ["OMP_WAIT_POLICY"] == "passive"
"""
    found = modules_after(code)
    assert "torch" in found
    assert not {"lightning", "torchmetrics", "tensorboard", "webdataset", "faster_coco_eval"} & found


def test_training_and_evaluation_load_torch_after_its_settings() -> None:
    assert "torch" not in modules_after("import odise_pl.training.run, odise_pl.evaluation.run")


def test_unknown_option_is_named() -> None:
    done = CliRunner().invoke(app, ["predict", "net.ckpt", "a.jpg", "--words", "dog", "--nonsense"])
    assert done.exit_code == 2
    assert "--nonsense" in done.output


def test_user_error_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["odise", "report", "nowhere"])
    with pytest.raises(SystemExit, match="error: nowhere"):  # Python prints it and exits with status 1
        main()
