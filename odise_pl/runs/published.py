"""Results of the paper (arXiv 2303.04803) in percent: benchmarks, supervision, caption model's ablations.

Those of other methods are from their repositories, from papers that measured them, or from memory of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """PQ and mIoU in percent, trained on COCO; None if unknown."""

    ade20k: float | None = None
    coco: float | None = None
    ade20k_miou: float | None = None
    coco_miou: float | None = None


@dataclass(frozen=True)
class Ablation:
    """One comparison of the paper.

    Attributes:
        name: of the setting that varies, also used for files.
        field: its attribute of :class:`~odise_pl.runs.record.AblationSettings`.
        rows: by value of the attribute, in the paper's order; of backbones, the paper's own is the first.
        notes: on published numbers, in Markdown.
    """

    name: str
    field: str
    rows: dict[str, Published]
    notes: tuple[str, ...] = ()


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
# training on COCO-Stuff. Numbers of other protocols are in PROTOCOLS.
METHODS: dict[str, dict[str, dict[str, float]]] = {
    **{f"odise_{model}": scores for model, scores in BENCHMARKS.items()},
    "fc_clip": {
        "coco": {"pq": 54.4, "map": 44.6, "miou": 63.7},
        "ade150": {"pq": 26.8, "map": 16.8, "miou": 34.1},
        "ade847": {"miou": 14.8},
        "pc459": {"miou": 18.2},
        "pc59": {"miou": 58.4},
        "pas21": {"miou": 81.8},
        "pas20": {"miou": 95.4},
    },
    "ovrcoat": {"coco": {"pq": 54.6}, "ade150": {"pq": 28.6}},
    "maskclip": {
        "ade150": {"pq": 15.1, "map": 6.0, "miou": 23.7},
        "ade847": {"miou": 8.2},
        "pc459": {"miou": 10.0},
        "pc59": {"miou": 45.9},
    },
    "openseg": {  # with ResNet-101, as here
        "ade150": {"miou": 15.3},
        "ade847": {"miou": 4.0},
        "pc459": {"miou": 6.5},
        "pc59": {"miou": 36.9},
        "pas20": {"miou": 60.0},
    },
    "lseg_plus": {  # with ResNet-101, as here, from OVSeg's paper
        "ade150": {"miou": 13.0},
        "ade847": {"miou": 2.5},
        "pc459": {"miou": 5.2},
        "pc59": {"miou": 36.0},
        "pas20": {"miou": 59.0},
    },
    "groupvit": {  # the released weights, measured by ODISE's authors
        "coco": {"miou": 21.1},
        "ade150": {"miou": 10.6},
        "ade847": {"miou": 4.3},
        "pc459": {"miou": 4.9},
        "pc59": {"miou": 25.9},
        "pas21": {"miou": 50.7},
    },
    "simbaseline": {"ade150": {"miou": 15.3}, "pas21": {"miou": 74.5}},
    "zegformer": {"ade150": {"miou": 16.4}},
}


class SplitScores(NamedTuple):
    """mIoU of seen and of unseen classes in percent, all of them competing, and their harmonic mean."""

    seen: float
    unseen: float
    harmonic: float


# By file of conf/split and method. Those of SPNet and ZS3Net on voc15 and coco_stuff156 are as CaGNet's
# authors list them.
SPLITS: dict[str, dict[str, SplitScores]] = {
    "voc15": {
        "SPNet": SplitScores(75.8, 0.0, 0.0),
        "SPNet, calibrated": SplitScores(78.0, 15.6, 26.1),
        "ZS3Net": SplitScores(77.3, 17.7, 28.7),
        "SimBaseline": SplitScores(83.5, 72.5, 77.5),
        "ZegFormer": SplitScores(86.4, 63.6, 73.3),
    },
    "coco_stuff156": {
        "SPNet": SplitScores(34.6, 0.7, 1.4),
        "SPNet, calibrated": SplitScores(35.2, 8.7, 14.0),
        "ZS3Net": SplitScores(34.7, 9.5, 15.0),
        "SimBaseline": SplitScores(39.3, 36.3, 37.8),
        "ZegFormer": SplitScores(36.6, 33.2, 34.8),
    },
    "context49": {"ZS3Net": SplitScores(20.8, 12.7, 15.8)},
    "voc10": {"ZS3Net": SplitScores(33.9, 18.1, 23.6)},
}
# What the numbers are that comparisons of methods list among those of the six benchmarks.
PROTOCOLS = (
    "* On VOC, SPNet's 18.3, ZS3Net's 38.3 and LSeg's 47.4 are means over the folds of PASCAL-5i, whose "
    "images come with their class; ZegFormer's 73.3 is the harmonic mean of `split=voc15`, without "
    "background. These are not mIoU of 21 classes.",
    "* On PASCAL-Context, ZS3Net's 19.4 is the mean of all 59 classes of `split=context49`; SPNet's 24.3 is "
    "of a split, too, but it is uncertain which.",
    "* SimBaseline's numbers are of a training on the 156 seen classes of `split=coco_stuff156`.",
    *(
        f"* mIoU of seen / unseen classes / hIoU with `split={split}`: "
        + "; ".join(f"{name} {' / '.join(map(str, scores))}" for name, scores in methods.items())
        for split, methods in SPLITS.items()
    ),
)
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
            name: Published(
                *(sets.get(one, {}).get(score) for score in ("pq", "miou") for one in ("ade150", "coco"))
            )
            for name, sets in METHODS.items()
        },
        PROTOCOLS,
    ),
)
# The fixed settings of each ablation, and the rows that others are compared with.
STANDARD = {"timesteps": "0", "captioner": "implicit", "classifier": "both"}
# The evaluation sets that are one of the paper's, or that the small world has in its place.
STANDS_FOR = {"coco": "coco", "ade150": "ade20k", "toy_val": "coco", "toy_open": "ade20k"}
