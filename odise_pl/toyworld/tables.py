"""The paper in miniature: ``make paper-tables``, ``python -m odise_pl.toyworld.tables``.

Trains and evaluates on the small world what the paper's tables compare, each with several seeds, and writes
the results beside the published ones. Takes hours; what is finished is skipped, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from odise_pl.data.captions import prepare_captions
from odise_pl.data.manifest import check_shards
from odise_pl.errors import UserError
from odise_pl.files import write_text
from odise_pl.published import ABLATIONS, BENCHMARKS, Ablation
from odise_pl.report import Table
from odise_pl.runs import EVALUATIONS, MARKER, FinishedRun, read_run
from odise_pl.toyworld.captioner import SentenceModel
from odise_pl.toyworld.commands import call
from odise_pl.toyworld.demo import SETS
from odise_pl.toyworld.make import main as make

CAPTIONED = "captioned"  # folder of the shards that hold captions by a model
_FIXED_TIME = "captioner.learnable_time=false"
_NONE = "-"

# What is measured: heading, data set, score.
COLUMNS = (
    ("toy_val PQ", "toy_val", "pq"),
    ("toy_open PQ", "toy_open", "pq"),
    ("base PQ", "toy_open", "pq_base"),
    ("novel PQ", "toy_open", "pq_novel"),
    ("toy_open mAP", "toy_open", "map"),
    ("toy_open mIoU", "toy_open", "miou"),
)


@dataclass(frozen=True)
class Case:
    """One training of the tables, repeated with several seeds.

    Attributes:
        name: also of the folder.
        settings: of ``train.py``.
    """

    name: str
    settings: tuple[str, ...]


def cases(shards: Path) -> list[Case]:
    """All trainings; those that two tables share occur once."""
    caption = "experiment=toy_caption"
    words = f"captioner.vocabulary={shards / 'toy_open' / 'dataset.json'}"
    captioned = [f"data.train={shards / CAPTIONED / 'toy_train'}"]
    captioned += [f"data.val.{name}={shards / CAPTIONED / name}" for name in SETS]
    steps = _ablation("timestep").rows
    return [
        Case("label", ("experiment=toy",)),
        Case("caption", (caption,)),
        Case("label_random", ("experiment=toy", "backbone.weights=random")),
        *(
            Case(f"timestep_{row}", (caption, _FIXED_TIME, f"backbone.timesteps={_steps(row)}"))
            for row in steps
        ),
        Case("captioner_empty", (caption, "captioner=empty")),
        Case("captioner_heuristic", (caption, "captioner=heuristic", words)),
        Case("captioner_blip", (caption, "captioner=blip", *captioned)),
    ]


def _folder(root: Path, case: str, seed: int) -> Path:
    return root / case / f"seed_{seed}"


def _steps(row: str) -> str:
    return row if row == "learnable" else f"[{row.replace('+', ',')}]"


def _ablation(name: str) -> Ablation:
    return next(ablation for ablation in ABLATIONS if ablation.name == name)


def run_all(root: Path, shards: Path, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Train all cases, seed by seed, and evaluate the caption model with each classifier.

    Raises:
        CommandError: one has failed.
    """
    for seed in seeds:
        for case in cases(shards):
            where = (
                f"hydra.run.dir={_folder(root, case.name, seed)}",
                f"paths.shards={shards}",
                f"seed={seed}",
            )
            call("train.py", *case.settings, *where, *overrides)
        folder = _folder(root, "caption", seed)
        for mode in _ablation("classifier").rows:
            what = (f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", f"classifier={mode}", "data=toy")
            call("evaluate.py", *what, f"hydra.run.dir={folder}", f"paths.shards={shards}", "trainer=cpu")


def finished(root: Path, case: str) -> list[FinishedRun]:
    """The runs of a case that came to their end; for ``classifier_MODE``, evaluations of ``caption``."""
    _, is_evaluation, mode = case.partition("classifier_")
    if not is_evaluation:
        return [read_run(path.parent) for path in sorted((root / case).glob(f"*/{MARKER}"))]
    runs = [read_run(path.parent) for path in sorted((root / "caption").glob(f"*/{EVALUATIONS}/*/{MARKER}"))]
    return [run for run in runs if run.settings.classifier == mode]


def scores(runs: Sequence[FinishedRun]) -> dict[str, list[float]]:
    """Percentages of the runs by the headings of :data:`COLUMNS`."""
    return {
        title: [100 * run.scores[data][name] for run in runs if name in run.scores.get(data, {})]
        for title, data, name in COLUMNS
    }


def _cell(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _row(root: Path, name: str, case: str, published: Sequence[float | None]) -> tuple[str, ...]:
    runs = finished(root, case)
    paper = (_NONE if value is None else f"{value:.1f}" for value in published)
    return (name, *paper, *map(_cell, scores(runs).values()), str(len(runs)))


def _header(name: str) -> tuple[str, ...]:
    return (name, "paper: COCO PQ", "paper: ADE20K PQ", *(title for title, *_ in COLUMNS), "seeds")


def supervision_table(root: Path) -> Table:
    """Label and caption supervision, and the control."""
    known = {name: [sets["coco"]["pq"], sets["ade150"]["pq"]] for name, sets in BENCHMARKS.items()}
    rows = [_row(root, name, name, known[name]) for name in ("label", "caption")]
    rows.append(_row(root, "label, random diffusion weights", "label_random", [None, None]))
    return Table("supervision", _header("supervision"), tuple(rows))


def ablation_table(root: Path, ablation: Ablation) -> Table:
    """One of the paper's ablations."""
    rows = [
        _row(root, name, _case_of(ablation, name), [published.coco, published.ade20k])
        for name, published in ablation.rows.items()
    ]
    return Table(ablation.name, _header(ablation.name), tuple(rows))


def _case_of(ablation: Ablation, row: str) -> str:
    return "caption" if (ablation.name, row) == ("captioner", "implicit") else f"{ablation.name}_{row}"


def orders(root: Path, ablation: Ablation) -> Iterator[str]:
    """The rows from best to worst in the paper and here, on the set that was not trained on."""
    found = {name: scores(finished(root, _case_of(ablation, name)))["toy_open PQ"] for name in ablation.rows}
    if all(found.values()):
        ours = sorted(found, key=lambda name: -fmean(found[name]))
        paper = sorted(ablation.rows, key=lambda name: -ablation.rows[name].ade20k)
        yield f"* paper, ADE20K: {' > '.join(paper)}"
        yield f"* here, toy_open: {' > '.join(ours)}" + (" (the same order)" if ours == paper else "")


_HEAD = """# The paper in miniature

Written by `make paper-tables` from finished runs on the small world: in percent, mean and standard deviation
over seeds. Base and novel PQ are of toy_open. The paper's columns are of models trained on COCO, full scale;
only differences between rows can be compared, and small ones lie within the spread.

* Trainings are those of `experiment=toy` and `experiment=toy_caption`.
* In the timestep table the time embedding is not learned, but for `learnable`.
* `blip` stands for a captioning model; here, it is the sentence under another picture of the small world that
  the small CLIP finds most like the image. `heuristic` knows all words of the small world, also novel ones.
* The classifier table evaluates the caption model of the first table.
"""


def document(root: Path) -> str:
    """All tables as Markdown."""
    parts = [_HEAD, supervision_table(root).markdown()]
    for ablation in ABLATIONS:
        lines = "\n".join(orders(root, ablation))
        parts += [ablation_table(root, ablation).markdown(), *([lines + "\n"] if lines else [])]
    return "\n".join(parts)


def write_captions(shards: Path, weights: str, workers: int) -> None:
    """Copies of the shards in which every image has a caption by a model."""
    for name in ("toy_train", *SETS):
        prepare_captions(
            check_shards(shards / name), shards / CAPTIONED / name, SentenceModel(weights), workers, False
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.tables", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", type=Path, default=Path("runs/paper_tables"), help="folder of all runs")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of the shard sets")
    parser.add_argument("--out", type=Path, default=Path("docs/toy_results.md"), help="the tables")
    parser.add_argument(
        "--clip", default="odise_pl/toyworld/weights/clip.safetensors", help="it chooses captions"
    )
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is finished")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    try:
        if not options.write_only:
            if make(["--out", str(options.shards)]):
                return 1
            write_captions(options.shards, options.clip, workers=2)
            run_all(options.run, options.shards, options.seeds, options.overrides)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, document(options.run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
