"""The paper in miniature: ``make paper-tables``, ``python -m odise_pl.toyworld.tables``.

Trains and evaluates on the small world what the paper's tables compare, each with several seeds, and writes
the results beside the published ones. Takes hours; what is finished is skipped, what was interrupted goes on.
All scores are kept in a JSON file beside the tables, so that another machine can go on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from odise_pl.arguments import ends_with_message, not_negative, positive
from odise_pl.data.manifest import check_shards
from odise_pl.data.prepare.captions import prepare_captions
from odise_pl.files import write_text
from odise_pl.runs.published import ABLATIONS, BENCHMARKS, Ablation
from odise_pl.runs.report import Table
from odise_pl.toyworld.captioner import SentenceModel
from odise_pl.toyworld.commands import Programs, add_overrides, setting
from odise_pl.toyworld.demo import SETS
from odise_pl.toyworld.results import Results, ResultsError, Scores
from odise_pl.toyworld.shipped import WEIGHTS
from odise_pl.toyworld.trainings import CAPTIONED, Places, case_of, digests, run_all, unfinished

_NONE = "-"
Found = Mapping[str, Sequence[Scores]]  # by case, of its seeds

# What is measured: heading, data set, score.
COLUMNS = (
    ("toy_val PQ", "toy_val", "pq"),
    ("toy_open PQ", "toy_open", "pq"),
    ("base PQ", "toy_open", "pq_base"),
    ("novel PQ", "toy_open", "pq_novel"),
    ("toy_open mAP", "toy_open", "map"),
    ("toy_open mIoU", "toy_open", "miou"),
)


def scores(runs: Sequence[Scores]) -> dict[str, list[float]]:
    """Percentages of the runs by the headings of :data:`COLUMNS`."""
    return {
        title: [100 * run[data][name] for run in runs if name in run.get(data, {})]
        for title, data, name in COLUMNS
    }


def _cell(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _row(found: Found, name: str, case: str, published: Sequence[float | None]) -> tuple[str, ...]:
    runs = found[case]
    paper = (_NONE if value is None else f"{value:.1f}" for value in published)
    return (name, *paper, *map(_cell, scores(runs).values()), str(len(runs)))


def _header(name: str) -> tuple[str, ...]:
    return (name, "paper: COCO PQ", "paper: ADE20K PQ", *(title for title, *_ in COLUMNS), "seeds")


def supervision_table(found: Found) -> Table:
    """Label and caption supervision, and the control."""
    known = {name: [sets["coco"]["pq"], sets["ade150"]["pq"]] for name, sets in BENCHMARKS.items()}
    rows = [_row(found, name, name, known[name]) for name in ("label", "caption")]
    rows.append(_row(found, "label, random diffusion weights", "label_random", [None, None]))
    return Table("supervision", _header("supervision"), tuple(rows))


def ablation_table(found: Found, ablation: Ablation) -> Table:
    """One of the paper's ablations."""
    rows = [
        _row(found, name, case_of(ablation, name), [published.coco, published.ade20k])
        for name, published in ablation.rows.items()
    ]
    return Table(ablation.name, _header(ablation.name), tuple(rows))


def orders(found: Found, ablation: Ablation) -> Iterator[str]:
    """The rows from best to worst in the paper and here, on the set that was not trained on."""
    measured = {name: scores(found[case_of(ablation, name)])["toy_open PQ"] for name in ablation.rows}
    if all(measured.values()):
        ours = sorted(measured, key=lambda name: -fmean(measured[name]))
        paper = sorted(ablation.rows, key=lambda name: -ablation.rows[name].ade20k)
        single = " (rows of one seed: small differences may be chance)"
        yield f"* paper, ADE20K: {' > '.join(paper)}"
        yield (
            f"* here, toy_open: {' > '.join(ours)}"
            + (", the same order" if ours == paper else "")
            + (single if min(map(len, measured.values())) == 1 else "")
        )


_HEAD = """# The paper in miniature

Written by `make paper-tables` from finished runs on the small world: in percent, mean and standard deviation
over seeds. Base and novel PQ are of toy_open. The paper's columns are of models trained on COCO, full scale;
only differences between rows can be compared, and small ones lie within the spread. The very same training,
made twice with seed 0, had a PQ of 40.4 and 41.5 on toy_open: sums on other processors and threads differ in
their last digits.

* Trainings are those of `experiment=toy` and `experiment=toy_caption`.
* The published model learns its time embedding (step 0): it is `caption`, `learnable`, `implicit` and `both`,
  one training. All other rows of timesteps and captioners do not learn it, so that `implicit` differs from
  the other captioners in that, too; step `0` is the implicit captioner without.
* `blip` stands for a captioning model; here, it is the sentence under another picture of the small world that
  the small CLIP finds most like the image. `heuristic` knows all words of the small world, also novel ones.
* The classifier table evaluates the caption model of the first table.
"""


def document(found: Found) -> str:
    """All tables as Markdown."""
    parts = [_HEAD, supervision_table(found).markdown()]
    for ablation in ABLATIONS:
        lines = "\n".join(orders(found, ablation))
        parts += [ablation_table(found, ablation).markdown(), *([lines + "\n"] if lines else [])]
    return "\n".join(parts)


def write_captions(shards: Path, weights: str, workers: int) -> None:
    """Copies of the shards in which every image has a caption by a model."""
    for name in ("toy_train", *SETS):
        prepare_captions(
            check_shards(shards / name), shards / CAPTIONED / name, SentenceModel(weights), workers, False
        )


def _refuse_others(results: Results, wanted: Mapping[str, str]) -> None:
    others = results.others(wanted)
    if others:
        raise ResultsError(
            f"{results.path} holds {len(others)} results of other settings or weights, the first of "
            f"{others[0][0]}: say --replace to make them anew, or name another --out"
        )


def _write(path: Path, results: Results, wanted: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document(results.matching(wanted)))


def _measure(results: Results, wanted: Mapping[str, str], where: Places, options: argparse.Namespace) -> None:
    """Do all that is missing, and write the tables after each run; then drop what is of other settings."""
    seeds = tuple(dict.fromkeys(options.seeds))
    if unfinished(results, wanted, where, seeds):
        with Programs() as programs:
            programs.call("-m", "odise_pl.toyworld.make", "--out", str(where.shards))
            write_captions(where.shards, str(options.weights / "clip.safetensors"), workers=2)
            for _ in run_all(programs, results, wanted, where, seeds, options.overrides, options.jobs):
                _write(options.out, results, wanted)
    for case, seed in results.others(wanted):
        results.drop(case, seed)


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.tables", description=__doc__)
    parser.add_argument(
        "--seeds", type=not_negative, nargs="+", default=[0, 1, 2], metavar="SEED", help="one training each"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at once, which share the cores")
    parser.add_argument("--run", type=Path, default=Path("runs/paper_tables"), help="folder of all runs")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of the shard sets")
    parser.add_argument("--out", type=Path, default=Path("docs/toy_results.md"), help="the tables")
    parser.add_argument("--replace", action="store_true", help="drop results of other settings or weights")
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is finished")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the frozen models")
    add_overrides(parser, help="a setting of all trainings")
    options = parser.parse_args(arguments)
    where = Places(options.run, options.shards)
    if options.out.suffix != ".md":
        parser.error(f"--out {options.out}: names the Markdown file, NAME.md; the scores go to NAME.json")
    if not options.weights.is_dir():
        parser.error(f"--weights {options.weights}: there is no such folder")
    results = Results(options.out.with_suffix(".json"))
    if options.weights != WEIGHTS:
        options.overrides.append(setting("paths.toyworld", options.weights))
    wanted = digests(options.overrides, options.weights)
    if not options.replace:
        _refuse_others(results, wanted)
    if not options.write_only:
        _measure(results, wanted, where, options)
    _write(options.out, results, wanted)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
