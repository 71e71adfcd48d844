"""Results of the paper (arXiv 2303.04803) in percent: benchmarks, supervision, caption model's ablations.

Those of other methods are from their repositories, from papers that measured them, or from memory of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """PQ in percent, trained on COCO; None if unknown."""

    ade20k: float
    coco: float | None = None


@dataclass(frozen=True)
class Ablation:
    """One comparison of the paper.

    Attributes:
        name: of the setting that varies, also used for files.
        field: its attribute of :class:`~odise_pl.runs.record.AblationSettings`.
        rows: by value of the attribute, in the paper's order; of backbones, the paper's own is the first.
    """

    name: str
    field: str
    rows: dict[str, Published]


# PQ, mAP and mIoU by model and benchmark (tables 1 to 3 of the paper), trained on COCO.
BENCHMARKS: dict[str, dict[str, dict[str, float]]] = {
    "label": {
        "coco": {"pq": 55.4, "map": 46.0, "miou": 65.2},
        "ade150": {"pq": 22.6, "map": 14.4, "miou": 29.9},
        "ade847": {"miou": 11.1},
        "pc459": {"miou": 14.5},
        "pc59": {"miou": 57.3},
        "pas21": {"miou": 84.6},
    },
    "caption": {
        "coco": {"pq": 45.6, "map": 38.4, "miou": 52.4},
        "ade150": {"pq": 23.4, "map": 13.9, "miou": 28.7},
        "ade847": {"miou": 11.0},
        "pc459": {"miou": 13.8},
        "pc59": {"miou": 55.3},
        "pas21": {"miou": 82.7},
    },
}
# The same of other methods, as far as they evaluate these sets in this way; those of SimBaseline are of a
# training on COCO-Stuff.
METHODS: dict[str, dict[str, dict[str, float]]] = {
    **{f"odise_{model}": scores for model, scores in BENCHMARKS.items()},
    "fc_clip": {
        "coco": {"pq": 54.4, "map": 44.6, "miou": 63.7},
        "ade150": {"pq": 26.8, "map": 16.8, "miou": 34.1},
        "ade847": {"miou": 14.8},
        "pc459": {"miou": 18.2},
        "pc59": {"miou": 58.4},
        "pas21": {"miou": 81.8},
    },
    "ovrcoat": {"coco": {"pq": 54.6}, "ade150": {"pq": 28.6}},
    "maskclip": {
        "ade150": {"pq": 15.1, "miou": 23.7},
        "ade847": {"miou": 8.2},
        "pc459": {"miou": 10.0},
        "pc59": {"miou": 45.9},
    },
    "openseg": {  # with ResNet-101, as here
        "ade150": {"miou": 15.3},
        "ade847": {"miou": 4.0},
        "pc459": {"miou": 6.5},
        "pc59": {"miou": 36.9},
    },
    "simbaseline": {"ade150": {"miou": 15.3}, "pas21": {"miou": 74.5}},
    "zegformer": {"ade150": {"miou": 16.4}},  # 73.3 on VOC is a harmonic mean of another protocol
}
PUBLISHED_BACKBONE = "stable_diffusion_v1"  # of all rows but those of other representations
ABLATIONS = (
    Ablation(
        "supervision",
        "model",
        {"label": Published(22.6, 55.4), "caption": Published(23.4, 45.6)},
    ),
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
    # The numbers without COCO are not readable in the text at hand. In it, DeiT-v3 and BEiT-v2 agree in all
    # numbers: look at the paper's PDF before relying on one of them. Where two public networks may stand in
    # for the paper's Swin and ConvNeXt, its numbers stand beside both.
    Ablation(
        "backbone",
        "backbone",
        {
            PUBLISHED_BACKBONE: Published(23.3, 44.2),
            "deit3_h": Published(21.4, 41.4),
            "swin_l": Published(20.9),
            "swin_h": Published(20.9),
            "convnext_xl": Published(21.0),
            "convnext_v2_h": Published(21.0),
            "mvit_h": Published(21.1),
            "ldm_in1k": Published(20.7),
            "moco_v3_l": Published(19.3, 37.1),
            "dino_b": Published(20.6, 39.5),
            "mae_h": Published(21.5, 37.9),
            "beitv2_l": Published(21.4, 41.4),
            "clip_l": Published(20.4, 40.6),
            "clip_h": Published(21.2, 41.0),
        },
    ),
    Ablation(
        "method",
        "method",
        {
            name: Published(sets["ade150"]["pq"], sets.get("coco", {}).get("pq"))
            for name, sets in METHODS.items()
            if "pq" in sets["ade150"]
        },
    ),
)
# The fixed settings of each ablation, and the rows that others are compared with.
STANDARD = {"timesteps": "0", "captioner": "implicit", "classifier": "both"}
# The evaluation sets that are one of the paper's, or that the small world has in its place.
STANDS_FOR = {"coco": "coco", "ade150": "ade20k", "toy_val": "coco", "toy_open": "ade20k"}
