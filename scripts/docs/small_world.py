"""Train and evaluate all rows of the small world's tables: ``python -m scripts.docs.small_world``.

Stop it at any time and run it again, on any machine: finished runs are skipped, interrupted ones resume.
All rows are trained with one seed before the next. At the end, the scores of all runs in runs/small_world go
to docs/figures/small_world.json and into the plots, and the tables are printed. To share the work, give each
machine seeds of its own, and either copy the folders together and run it again, or run it with --add in turn.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image

from odise_pl import Segmenter
from odise_pl.checkpoints.weights import trainable_parameters
from odise_pl.errors import UserError
from odise_pl.runs.comparison import Row, as_json, difference_table, from_json, score_table
from odise_pl.runs.conf import CONF
from odise_pl.runs.finished import FINISHED, FinishedRun, find_runs
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.record import relevant_settings
from odise_pl.runs.report import Group, ablation_rows
from scripts.docs.pictures import FIGURES, IMAGES
from scripts.docs.plots import draw_tables
from scripts.figures import write_figures

RUNS, WEIGHTS = Path("runs"), Path("odise_pl/toyworld/weights")
_PICTURE = Path("docs/images/example.png")
_NAME = "small_world"
_STEPS_OF_ALL = "trainer.max_steps=400"
_LABEL, _CAPTION = (("experiment=toy", _STEPS_OF_ALL), ("experiment=toy_caption", _STEPS_OF_ALL))
_FIXED_TIME = (*_CAPTION, "captioner.learnable_time=false")
_STEPS = {"0": "[0]", "100": "[100]", "200": "[200]", "500": "[500]", "several": "[0,100,200]"}
TRAININGS = {
    "label": _LABEL,
    "random": (*_LABEL, "backbone.weights=random"),
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
    f"representation/{backbone}": (*_LABEL, f"backbone={backbone}")
    for backbone, _ in REPRESENTATIONS.values()
}
# What one setting at a time gives: its name, the value of all tables, how it is set, and other values.
_LEARNS = "optimizer.lr_scale={{backbone: {}}}"  # trained there: captioner and projections
EFFORT: tuple[tuple[str, float, str, tuple[float, ...]], ...] = (
    ("steps", 400, "trainer.max_steps={}", (100, 200, 800, 1600, 4000)),
    ("queries", 16, "model.head.queries={}", (8, 32, 64)),
    ("learning rate", 1e-3, "optimizer.lr={}", (3e-4, 3e-3)),
    ("times that rate for captioner and projections", 1, _LEARNS, (0.1, 0.3, 3)),
    ("pixels of input", 128, "backbone.input_size={}", (256,)),
)
_START = ", ".join(f"{value:g} {name}" for name, value, _, _ in EFFORT)
_EFFORTS = {
    f"{value:g} {name}": setting.format(value) for name, _, setting, values in EFFORT for value in values
}
_EFFORT_FOLDERS = {name: f"effort/{name.replace(' ', '_')}" for name in _EFFORTS}
TRAININGS |= {_EFFORT_FOLDERS[name]: (*_LABEL, setting) for name, setting in _EFFORTS.items()}
# Presets with parts of the small world, and its own models, trained equally long on equally large pictures.
_TOY: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / "toy.yaml"))
_SETTINGS = {key: f"{key}={value}" for key, value in relevant_settings(_TOY).items()}
_HEAD = [v for k, v in _SETTINGS.items() if k.startswith("model.head.") and k != "model.head.embed_dim"]
BUDGET = [v for k, v in _SETTINGS.items() if k.startswith(("optimizer.", "data."))]
BUDGET += ["data.image_size=128", "data.eval_short_side=128", "global_batch=8", _STEPS_OF_ALL]
_RESNET = "backbone=toy_supervised_conv"
_PROMPT = "prompts=single"  # the small CLIPs have not read those of the presets
_CONV_CLIP = ("clip=toy_conv", "backbone.window=whole", _PROMPT)
# rates of AdamW, which all have, in place of those of SGD
_DENSE = (
    "optimizer=adamw",
    "optimizer.power=0.9",
    "++optimizer.lr_scale={backbone.features: 0.1, pixel_decoder: 1, mask_decoder: 1}",
)
METHODS = {
    "fc_clip": ("experiment=toy", *_CONV_CLIP),
    "fc_clip_caption": ("experiment=toy_caption", "model=odise_caption", *_CONV_CLIP),
    "ovrcoat": ("experiment=toy", *_CONV_CLIP),
    "maskclip_proposals": ("experiment=toy", _RESNET),
    "maskclip": ("experiment=toy", _RESNET),
    "simbaseline": ("experiment=toy", _RESNET, "clip=toy", _PROMPT),
    "zegformer": ("experiment=toy", _RESNET, "clip=toy", _PROMPT),
    "openseg": ("experiment=toy_caption", _RESNET, _PROMPT),
    "mask2former": ("experiment=toy", _RESNET),
    "lseg": ("experiment=toy", "backbone=toy_clip", "clip=toy", *_DENSE),
    "lseg_plus": ("experiment=toy", _RESNET, _PROMPT, *_DENSE),
    "spnet_clip_text": ("experiment=toy", _RESNET, *_DENSE),
    "zs3net_seen_clip_text": ("experiment=toy", _RESNET, *_DENSE),
    "zs3net_clip_text": ("experiment=toy", _RESNET),
    "best": (
        "experiment=toy",
        "backbone@backbone.first=toy",
        "backbone@backbone.second=toy_supervised_conv",
        "backbone.input_size=128",
        "backbone.window=128",
    ),
    "groupvit": ("backbone=toy_groupvit", "data=toy", "trainer=cpu", "model.inference.window=128"),
}
METHOD_FOLDERS = {"odise_label": "label", "odise_caption": "caption"} | {n: f"method/{n}" for n in METHODS}
_FIRST_STAGES = {"maskclip": "maskclip_proposals", "zs3net_clip_text": "zs3net_seen_clip_text"}
# The folders of each table. Captioners are compared with timestep/0, which does not learn the time either;
# classifiers are evaluated on caption.
TABLES = {
    "supervision": ("label", "random", "caption"),
    "timestep": ("timestep", "caption"),
    "captioner": ("captioner", "timestep/0", "caption"),
    "classifier": ("classifier",),
    "representation": ("representation", "label"),
    "effort": ("effort", "label"),
    "method": ("method", "label", "caption"),
}
_TRAINED_ON = {
    "representation": [n.removeprefix("toy_") for n, _ in REPRESENTATIONS.values() if n != _SHIPPED],
    "method": ["supervised_conv", "clip_conv"],
}
_RANDOM = "label, random", "label, random diffusion weights"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def commands(tables: Sequence[str], seeds: Sequence[int]) -> Iterator[list[str]]:
    """The commands that paint, pre-train what is missing, train and evaluate, in their order."""
    yield ["odise", "toyworld", "make"]
    for kind in dict.fromkeys(kind for table in tables for kind in _TRAINED_ON.get(table, ())):
        if not any((WEIGHTS / "representations").glob(f"{kind}*")):
            yield ["python", "-m", "scripts.pretrain_toyworld", "representation", kind, "--out", str(WEIGHTS)]
    folders = {folder for table in tables for folder in TABLES[table]}
    folders |= {"caption"} if "classifier" in tables else set()
    for seed in seeds:
        for name, settings in TRAININGS.items():
            if folders & {name, name.partition("/")[0]}:
                yield [*_train(name, seed), *settings]
        for name, settings in METHODS.items() if "method" in tables else ():
            own = [f"method={name.removesuffix('_caption')}"]
            if name in _FIRST_STAGES:
                own += [f"init_from={_folder(f'method/{_FIRST_STAGES[name]}', seed)}"]
            own += [] if name == "groupvit" else _HEAD  # it has no such head
            yield [*_train(f"method/{name}", seed), *own, *settings, *BUDGET]
        if "classifier" in tables:
            run, checkpoint = f"run={_NAME}/classifier/seed_{seed}", f"ckpt={_folder('caption', seed)}"
            classifiers = "classifier=discriminative,diffusion,both"
            yield ["odise", "evaluate", "-m", run, checkpoint, "data=toy", "trainer=cpu", classifiers]


def _folder(name: str, seed: int) -> Path:
    return RUNS / _NAME / name / f"seed_{seed}"


def _train(name: str, seed: int) -> list[str]:
    return ["odise", "train", f"run={_folder(name, seed).relative_to(RUNS)}", f"seed={seed}"]


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


def collect(runs: Path, tables: Iterable[str] = TABLES) -> dict[str, list[Row]]:
    """The rows of tables, from the finished runs.

    Raises:
        UserError: a table has no runs.
    """
    return {
        name: list(_by_folder(runs / _NAME, *_FOLDERS[name]))
        if name in _FOLDERS
        else [row for row, _ in _rows(name, runs)]
        for name in tables
    }


# Tables whose rows are folders: the row of comparison, and folder and paper's row of each.
_FOLDERS: dict[str, tuple[str, dict[str, tuple[str, str | None]]]] = {
    "representation": (
        _OURS,
        {
            **{name: (f"representation/{own}", paper) for name, (own, paper) in REPRESENTATIONS.items()},
            _OURS: ("label", "stable_diffusion_v1"),
        },
    ),
    "effort": (
        _START,
        {_START: ("label", None), **{name: (folder, None) for name, folder in _EFFORT_FOLDERS.items()}},
    ),
    "method": ("odise_label", {name: (folder, name) for name, folder in METHOD_FOLDERS.items()}),
}


_PUBLISHED = {
    name: row for one in ABLATIONS if one.name in ("backbone", "method") for name, row in one.rows.items()
}


def _by_folder(runs: Path, reference: str, folders: Mapping[str, tuple[str, str | None]]) -> Iterator[Row]:
    """The rows that have runs: some take hours, and the others need not wait for them."""
    for name, (folder, paper) in folders.items():
        if found := _finished(runs / folder):
            group = Group(found[0].settings, found[0].conditions, tuple(found))
            yield Row(name, reference, _PUBLISHED.get(paper or ""), group.scores())


def _finished(folder: Path) -> list[FinishedRun]:
    """The finished runs below a folder, possibly none."""
    return find_runs(folder) if any(folder.rglob(FINISHED)) else []


def _rows(table: str, runs: Path) -> list[tuple[Row, Group]]:
    """The rows with runs, in the paper's order, under the names of the documentation."""
    ablation = next(one for one in ABLATIONS if one.name == table)
    folders = [runs / _NAME / name for name in TABLES[table]]
    found = [(row, group) for row, group in ablation_rows(ablation, find_runs(*folders)) if group]
    names = {row.name: row.name.replace(*_RANDOM) for row, _ in found}
    if ablation.field == "timesteps":  # step 0 with a learned time embedding is the same network
        names |= {row.name: "learnable" for row, group in found if group.settings.learnable_time}
    order = [*ablation.rows, *names.values()]
    renamed = []
    for row, group in found:
        name, reference = names[row.name], names.get(row.reference or "")
        renamed.append((Row(name, reference, ablation.rows.get(name), row.scores), group))
    return sorted(renamed, key=lambda pair: order.index(pair[0].name))


def with_known(rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
    """Rows with the scores of other seeds, and other rows, that are known."""
    old, names = {row.name: row for row in known}, [row.name for row in rows]
    joined = [
        replace(row, scores={c: {**old[row.name].scores.get(c, {}), **by} for c, by in row.scores.items()})
        if row.name in old
        else row
        for row in rows
    ]
    return joined + [row for row in known if row.name not in names]


def costs_of_methods(runs: Path) -> dict[str, dict[str, float]]:
    """Parameters in millions, and processor milliseconds of an image on one thread (the least of five)."""
    torch.set_num_threads(1)
    costs = {}
    with Image.open(_PICTURE) as image:
        picture = image.convert("RGB")
    for name, folder in METHOD_FOLDERS.items():
        found = _finished(runs / _NAME / folder)
        if not found:
            continue
        segmenter, seconds = Segmenter.from_pretrained(found[0].folder), []
        for _ in range(5):
            start = time.process_time()
            _ = segmenter(picture, segmenter.training).ids
            seconds.append(time.process_time() - start)
        costs[name] = {
            "parameters_million": sum(p.numel() for p in segmenter.model.parameters()) / 1e6,
            "trained_million": sum(p.numel() for p in trainable_parameters(segmenter.model).values()) / 1e6,
            "ms": 1000 * min(seconds),
        }
    return costs


def write(
    tables: Mapping[str, list[Row]],
    file: Path,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    add: bool = False,
) -> None:
    """Write the scores into the figures of the documentation; what else the file has stays.

    With ``add``, so do the scores of other seeds in these tables.
    """
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = kept.get("tables", {})
    if add:
        tables = {
            n: with_known(rows, from_json(known[n]) if n in known else []) for n, rows in tables.items()
        }
    what = (
        "The paper's comparisons on the small world, in percent: mean and sample standard deviation over "
        "seeds, and in runs the values of the seeds. paper is PQ of models trained on COCO."
    )
    values = {name: value for name, value in kept.items() if name != "about"}
    values["tables"] = known | as_json(tables)
    values["costs"] = {**kept.get("costs", {}), **(costs or {})}
    write_figures(file, what, "python -m scripts.docs.small_world", values)


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
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=", ".join(TABLES)
    )
    parser.add_argument("--add", action="store_true", help="keep the scores of other seeds in docs/figures")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    options = parser.parse_args()
    todo = list(commands(options.tables, options.seeds))
    if options.list:
        print(*map(shlex.join, todo), sep="\n")
        return 0
    failed = [command for command in todo if not execute(command)]
    try:
        tables = collect(RUNS, options.tables)
        costs = costs_of_methods(RUNS) if "method" in tables else {}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(tables, FIGURES, costs, options.add)
    for name, rows in tables.items():
        print(score_table(name, rows).markdown(), difference_table(name, rows).markdown(), sep="\n")
    print("written:", FIGURES, *draw_tables(FIGURES, IMAGES))
    print("python -m scripts.docs.numbers fills the pages")
    for command in failed:
        print(f"failed: {shlex.join(command)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
