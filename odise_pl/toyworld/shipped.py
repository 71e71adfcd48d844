"""What comes with the project."""

from __future__ import annotations

from pathlib import Path

# the frozen models that come with the project
WEIGHTS = Path(__file__).with_name("weights")
