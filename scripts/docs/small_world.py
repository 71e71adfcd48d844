"""Train and evaluate all rows of the small world's tables: ``python -m scripts.docs.small_world``.

Stop it at any time and run it again, on any machine: finished runs are skipped, interrupted ones resume.
All rows are trained with one seed before the next. At the end, the scores of all runs in runs/small_world go
to docs/figures/small_world.json and into the plots, and the tables are printed. To share the work, give each
machine seeds of its own, copy the folders together and run it again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from odise_pl.errors import UserError
from odise_pl.runs.comparison import Row, as_json, difference_table, score_table
from odise_pl.runs.conf import CONF
from odise_pl.runs.finished import FINISHED, find_runs
from odise_pl.runs.published import ABLATIONS, Ablation
from odise_pl.runs.record import relevant_settings
from odise_pl.runs.report import ablation_rows, group_runs
from scripts.docs.pictures import FIGURES, IMAGES
from scripts.docs.plots import draw_tables
from scripts.figures import write_figures

RUNS, WEIGHTS = Path("runs"), Path("odise_pl/toyworld/weights")
_NAME = "small_world"
_METHOD_RUNS = f"{_NAME}/method"
_CAPTION = ("experiment=toy_caption",)
_FIXED_TIME = (*_CAPTION, "captioner.learnable_time=false")
_STEPS = {"0": "[0]", "100": "[100]", "200": "[200]", "500": "[500]", "several": "[0,100,200]"}
TRAININGS = {
    "label": ("experiment=toy",),
    "random": ("experiment=toy", "backbone.weights=random"),
    "caption": _CAPTION,
    **{f"timestep/{name}": (*_FIXED_TIME, f"backbone.timesteps={steps}") for name, steps in _STEPS.items()},
    "captioner/empty": (*_FIXED_TIME, "captioner=empty"),
    "captioner/heuristic": (
        *(*_FIXED_TIME, "captioner=heuristic"),
        "captioner.vocabulary=data/shards/toy_open/dataset.json",
    ),
}
# Rows of the table of representations: backbone, and the paper's row of the same kind.
REPRESENTATIONS = {
    "labels, convolution": ("toy_supervised_conv", "convnext_xl"),
    "labels, transformer": ("toy_supervised_vit", "deit3_h"),
    "class-conditional diffusion": ("toy_class_conditional_diffusion", "ldm_in1k"),
    "DINO": ("toy_dino", "dino_b"),
    "masked autoencoder": ("toy_mae", "mae_h"),
    "CLIP": ("toy_clip", "clip_l"),
}
_SHIPPED = "toy_clip"
_OURS = "text-conditional diffusion"
TRAININGS |= {
    f"representation/{backbone}": ("experiment=toy", f"backbone={backbone}")
    for backbone, _ in REPRESENTATIONS.values()
}
# Presets with parts of the small world, trained as long as its own models and on as large pictures.
_TOY: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / "toy.yaml"))
_BUDGET = [
    f"{key}={value}"
    for key, value in relevant_settings(_TOY).items()
    if key.startswith(("model.head.", "optimizer.", "data.")) and key != "model.head.embed_dim"
]
_BUDGET += ["data.image_size=128", "data.eval_short_side=128", "global_batch=8", "trainer.max_steps=1000"]
_RESNET = "backbone=toy_supervised_conv"
_CONV_CLIP = ("clip=toy_conv", "backbone.window=whole")
METHODS = {
    "fc_clip": ("experiment=toy", *_CONV_CLIP),
    "fc_clip_caption": ("experiment=toy_caption", "model=odise_caption", *_CONV_CLIP),
    "ovrcoat": ("experiment=toy", *_CONV_CLIP),
    "maskclip_proposals": ("experiment=toy", _RESNET),
    "maskclip": ("experiment=toy", _RESNET),
    "simbaseline": ("experiment=toy", _RESNET, "clip=toy"),
    "zegformer": ("experiment=toy", _RESNET, "clip=toy"),
    "openseg": ("experiment=toy_caption", _RESNET),
    "mask2former": ("experiment=toy", _RESNET),
}
_CONV_CLIP_KIND = "clip_conv"
# The folders of each table. Captioners are compared with timestep/0, which does not learn the time either.
TABLES = {
    "supervision": ("label", "random", "caption"),
    "timestep": ("timestep", "caption"),
    "captioner": ("captioner", "timestep/0", "caption"),
    "classifier": ("classifier",),
}
_RANDOM = "label, random", "label, random diffusion weights"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def commands(seeds: Sequence[int]) -> Iterator[list[str]]:
    """The commands that paint, pre-train what is missing, train and evaluate, in their order."""
    yield ["odise", "toyworld", "make"]
    kinds = [name.removeprefix("toy_") for name, _ in REPRESENTATIONS.values() if name != _SHIPPED]
    for kind in [*kinds, _CONV_CLIP_KIND]:
        if not any((WEIGHTS / "representations").glob(f"{kind}*")):
            yield ["python", "-m", "scripts.pretrain_toyworld", "representation", kind, "--out", str(WEIGHTS)]
    for seed in seeds:
        for name, settings in TRAININGS.items():
            yield ["odise", "train", f"run={_NAME}/{name}/seed_{seed}", f"seed={seed}", *settings]
        run, checkpoint = f"run={_NAME}/classifier/seed_{seed}", f"ckpt={RUNS}/{_NAME}/caption/seed_{seed}"
        for name, settings in METHODS.items():
            own = [f"run={_METHOD_RUNS}/{name}/seed_{seed}", f"seed={seed}"]
            own += [f"method={name.removesuffix('_caption')}"]
            first = f"init_from={RUNS}/{_METHOD_RUNS}/maskclip_proposals/seed_{seed}"
            yield ["odise", "train", *own, *settings, *_BUDGET, *([first] if name == "maskclip" else [])]
        classifiers = "classifier=discriminative,diffusion,both"
        yield ["odise", "evaluate", "-m", run, checkpoint, "data=toy", "trainer=cpu", classifiers]


def execute(command: Sequence[str]) -> bool:
    """Run a command of ours; returns whether it succeeded.

    Raises:
        SystemExit: a signal stopped it.
    """
    # in a session of its own: Ctrl-C would arrive twice, and the second one interrupts without saving
    words = command[1:] if command[0] == "python" else ("-m", "odise_pl", *command[1:])
    child = subprocess.Popen([sys.executable, *words], start_new_session=True)
    before = {number: signal.signal(number, lambda *_: child.terminate()) for number in _SIGNALS}
    code = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
        raise SystemExit(128 + signal.SIGTERM)
    return code == 0


def collect(runs: Path) -> dict[str, list[Row]]:
    """The rows of all :data:`TABLES`, from the finished runs.

    Raises:
        UserError: a table has no runs.
    """
    tables = {
        ablation.name: _rows(ablation, [runs / _NAME / name for name in TABLES[ablation.name]])
        for ablation in ABLATIONS
        if ablation.name in TABLES
    }
    tables["representation"] = list(_representations(runs / _NAME))
    if any((runs / _METHOD_RUNS).rglob(FINISHED)):
        ours = [runs / _NAME / name for name in ("label", "caption")]
        methods = next(ablation for ablation in ABLATIONS if ablation.name == "method")
        tables["method"] = _rows(methods, [runs / _METHOD_RUNS, *ours])
    return tables


def _representations(runs: Path) -> Iterator[Row]:
    """The rows that have runs: pre-training takes hours, and the other tables need not wait for it."""
    published = next(ablation.rows for ablation in ABLATIONS if ablation.name == "backbone")
    folders = {name: (f"representation/{own}", paper) for name, (own, paper) in REPRESENTATIONS.items()}
    for name, (folder, paper) in {**folders, _OURS: ("label", "stable_diffusion_v1")}.items():
        if any((runs / folder).rglob(FINISHED)):
            scores = group_runs(find_runs(runs / folder))[0].scores()
            yield Row(name, _OURS, published[paper], scores)


def _rows(ablation: Ablation, folders: Sequence[Path]) -> list[Row]:
    """The rows with runs, in the paper's order, under the names of the documentation."""
    found = [(row, group) for row, group in ablation_rows(ablation, find_runs(*folders)) if group]
    names = {row.name: row.name.replace(*_RANDOM) for row, _ in found}
    if ablation.field == "timesteps":  # step 0 with a learned time embedding is the same network
        names |= {row.name: "learnable" for row, group in found if group.settings.learnable_time}
    rows = [
        Row(names[row.name], names.get(row.reference or ""), ablation.rows.get(names[row.name]), row.scores)
        for row, _ in found
    ]
    order = [*ablation.rows, *names.values()]
    return sorted(rows, key=lambda row: order.index(row.name))


def write(tables: dict[str, list[Row]], file: Path) -> None:
    """Write the scores into the figures of the documentation; other figures in the file stay."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    what = (
        "The paper's comparisons on the small world, in percent: mean and sample standard deviation over "
        "seeds, and in runs the values of the seeds. paper is PQ of models trained on COCO."
    )
    others = {name: value for name, value in kept.items() if name != "about"}
    write_figures(file, what, "python -m scripts.docs.small_world", others | {"tables": as_json(tables)})


def _seeds(text: str) -> list[int]:
    return sorted({int(seed) for seed in text.split(",")})


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=_seeds, default="0,1,2,3,4", help="of the runs (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="only print the commands")
    options = parser.parse_args()
    todo = list(commands(options.seeds))
    if options.list:
        print(*map(shlex.join, todo), sep="\n")
        return 0
    failed = [command for command in todo if not execute(command)]
    try:
        tables = collect(RUNS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(tables, FIGURES)
    for name, rows in tables.items():
        print(score_table(name, rows).markdown(), difference_table(name, rows).markdown(), sep="\n")
    print("written:", FIGURES, *draw_tables(FIGURES, IMAGES))
    print("python -m scripts.docs.numbers fills the pages")
    for command in failed:
        print(f"failed: {shlex.join(command)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
