"""Results of a benchmark as a file for docs/figures; scripts/docs/numbers.py puts them into the pages."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import odise_pl


def write_figures(file: Path, what: str, values: Mapping[str, Any], command: str | None = None) -> None:
    """Write ``values`` with what was measured, by which command and version, on what and when.

    ``command`` is by default that of this process; an absolute path in it becomes PATH.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    about = {
        "what": what,
        "command": command or _command(),
        "machine": f"{os.cpu_count()} processor cores, {gpu}",
        "version": odise_pl.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }
    file.write_text(json.dumps({"about": about, **values}, indent=1) + "\n", encoding="utf-8")


def _command() -> str:
    words = ("PATH" if word.startswith("/") else word for word in sys.orig_argv[1:])
    return shlex.join(["python", *words])
