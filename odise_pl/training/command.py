"""``odise train``."""

from __future__ import annotations

import os
import sys

import typer


def train(ctx: typer.Context) -> None:
    """Train a network; the same as python train.py.

    Options are Hydra's, GROUP=CHOICE and KEY=VALUE: odise train data.train=DIR trainer.devices=8.
    All of them: odise train --cfg job. A run with the same settings resumes.
    """
    # a program of its own, which Lightning can start again for other devices
    os.execv(sys.executable, [sys.executable, "-m", "odise_pl.training.run", *ctx.args])
