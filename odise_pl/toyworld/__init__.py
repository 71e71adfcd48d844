"""The small world: painted data sets, their frozen models, and a demo of the whole project."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")  # the frozen models that come with the package
