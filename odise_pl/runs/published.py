"""Results of the paper (arXiv 2303.04803) in percent: benchmarks, and ablations of the caption model."""

from __future__ import annotations

# By table: the attribute of RunSettings that varies, and PQ on ADE20K and COCO by its value, in the paper's
# order; trained on COCO.
ABLATIONS: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "timestep": (
        "timesteps",
        {
            "0": (23.3, 44.2),
            "100": (22.8, 43.2),
            "200": (21.5, 42.4),
            "500": (20.9, 38.2),
            "0+100+200": (23.1, 43.7),
            "learnable": (22.8, 44.0),
        },
    ),
    "captioner": (
        "captioner",
        {"empty": (21.8, 43.5), "heuristic": (22.2, 44.0), "blip": (22.3, 44.1), "implicit": (23.3, 44.2)},
    ),
    "classifier": (
        "classifier",
        {"discriminative": (15.0, 26.5), "diffusion": (20.1, 42.3), "both": (23.3, 44.2)},
    ),
}
# The fixed settings of each ablation.
STANDARD = {"timesteps": "0", "captioner": "implicit", "classifier": "both"}
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
