"""``odise evaluate``."""

from __future__ import annotations

import os
import sys

import typer


def evaluate(ctx: typer.Context) -> None:
    """Score a checkpoint, or predictions of any model; the same as python evaluate.py.

    Options are Hydra's GROUP=CHOICE and KEY=VALUE: odise evaluate ckpt=PATH data=ade150.
    To list them all: odise evaluate --cfg job.
    """
    os.execv(sys.executable, [sys.executable, "-m", "odise_pl.evaluation.run", *ctx.args])
