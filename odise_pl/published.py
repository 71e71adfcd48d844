"""The ablations of the paper (arXiv 2303.04803): caption model, PQ in percent on ADE20K and COCO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """PQ in percent, trained on COCO."""

    ade20k: float
    coco: float


@dataclass(frozen=True)
class Ablation:
    """One table of the paper.

    Attributes:
        name: what varies; also the name of the table's files.
        field: the attribute of :class:`~odise_pl.runs.RunSettings` that varies.
        rows: by the values of the attribute, in the paper's order.
    """

    name: str
    field: str
    rows: dict[str, Published]


ABLATIONS = (
    Ablation(
        "timestep",
        "timesteps",
        {
            "0": Published(23.3, 44.2),
            "100": Published(22.8, 43.2),
            "200": Published(21.5, 42.4),
            "500": Published(20.9, 38.2),
            "0+100+200": Published(23.1, 43.7),
            "learnable": Published(22.8, 44.0),
        },
    ),
    Ablation(
        "captioner",
        "captioner",
        {
            "empty": Published(21.8, 43.5),
            "heuristic": Published(22.2, 44.0),
            "blip": Published(22.3, 44.1),
            "implicit": Published(23.3, 44.2),
        },
    ),
    Ablation(
        "classifier",
        "classifier",
        {
            "discriminative": Published(15.0, 26.5),
            "diffusion": Published(20.1, 42.3),
            "both": Published(23.3, 44.2),
        },
    ),
)
# What stands still while something else varies.
STANDARD = {"timesteps": "0", "captioner": "implicit", "classifier": "both"}
