"""Results of a benchmark as a file for docs/figures; scripts/docs/numbers.py puts them into the pages."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import odise_pl


def write_figures(file: Path, what: str, command: str, values: Mapping[str, Any]) -> None:
    """Write ``values`` with what was measured, by which command and version, on what and when."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    about = {
        "what": what,
        "command": command,
        "machine": f"{os.cpu_count()} processor cores, {gpu}",
        "version": odise_pl.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }
    file.write_text(json.dumps({"about": about, **values}, indent=1) + "\n", encoding="utf-8")
