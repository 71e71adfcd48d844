"""The trainings behind the paper's tables on the small world: which there are, and those that are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from odise_pl.runs.published import ABLATIONS, Ablation
from odise_pl.runs.record import EVALUATIONS, MARKER, read_run
from odise_pl.toyworld.commands import Programs, setting
from odise_pl.toyworld.demo import SETS
from odise_pl.toyworld.results import Result, Results, Scores, digest, weights_digest
from odise_pl.toyworld.shipped import WEIGHTS

CAPTIONED = "captioned"  # folder of the shards that hold captions by a model
_FIXED_TIME = "captioner.learnable_time=false"
# Rows of the ablations that are the caption model of the first table: what is published has learned time.
_SHARED = {("timestep", "learnable"), ("captioner", "implicit")}


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
    words = setting("captioner.vocabulary", shards / "toy_open" / "dataset.json")
    captioned = [setting("data.train", shards / CAPTIONED / "toy_train")]
    captioned += [setting(f"data.val.{name}", shards / CAPTIONED / name) for name in SETS]
    steps = [row for row in _ablation("timestep").rows if ("timestep", row) not in _SHARED]
    return [
        Case("label", ("experiment=toy",)),
        Case("caption", (caption,)),
        Case("label_random", ("experiment=toy", "backbone.weights=random")),
        *(
            Case(f"timestep_{row}", (caption, _FIXED_TIME, f"backbone.timesteps=[{row.replace('+', ',')}]"))
            for row in steps
        ),
        Case("captioner_empty", (caption, "captioner=empty")),
        Case("captioner_heuristic", (caption, "captioner=heuristic", words)),
        Case("captioner_blip", (caption, "captioner=blip", *captioned)),
    ]


def _ablation(name: str) -> Ablation:
    return next(ablation for ablation in ABLATIONS if ablation.name == name)


def case_of(ablation: Ablation, row: str) -> str:
    """The case behind a row of one of the paper's tables."""
    return "caption" if (ablation.name, row) in _SHARED else f"{ablation.name}_{row}"


@dataclass(frozen=True)
class Places:
    """Folders of the runs and of the shards."""

    runs: Path
    shards: Path


def digests(overrides: Sequence[str], weights: Path = WEIGHTS) -> dict[str, str]:
    """What every row of the tables depends on, by case; the same wherever runs and shards lie.

    Args:
        overrides: further settings of all trainings.
        weights: folder of the frozen models.

    Raises:
        SettingError: there is no such setting.
    """
    frozen = weights_digest(weights)
    found = {case.name: digest([*case.settings, *overrides], frozen) for case in cases(Path("data/shards"))}
    return found | {name: f"{found['caption']}/{name}" for name in _CLASSIFIERS}


_CLASSIFIERS = tuple(f"classifier_{mode}" for mode in _ablation("classifier").rows)


def unfinished(
    results: Results, wanted: Mapping[str, str], where: Places, seeds: Sequence[int]
) -> list[tuple[Case, int]]:
    """What is still to be trained, seed by seed."""
    return [
        (case, seed)
        for seed in seeds
        for case in cases(where.shards)
        if not all(results.has(name, seed, wanted[name]) for name in _parts(case))
    ]


def run_all(
    programs: Programs,
    results: Results,
    wanted: Mapping[str, str],
    where: Places,
    seeds: Sequence[int],
    overrides: Sequence[str],
    jobs: int = 1,
) -> Iterator[str]:
    """Train all cases, seed by seed, and evaluate the caption model with each classifier.

    Args:
        programs: that train and evaluate.
        results: what is there already, and where what is done is kept.
        wanted: from :func:`digests`.
        where: the runs and shards lie.
        seeds: of the repetitions.
        overrides: further settings of all trainings.
        jobs: trainings at once, which share the processor's cores.

    Yields:
        the name of a case whenever another of its results is there.

    Raises:
        CommandError: one has failed; none is begun after it, and the others come to their end.
    """
    missing = iter(unfinished(results, wanted, where, seeds))
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    running: dict[Future[dict[str, Scores]], int] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            # one by one, so that none is begun after a failure
            for case, seed in islice(missing, jobs - len(running)):
                folder = where.runs / case.name / f"seed_{seed}_{wanted[case.name][:8]}"
                running[pool.submit(_run, programs, case, seed, folder, where, overrides, threads)] = seed
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                seed = running.pop(done)
                for name, scores in done.result().items():
                    results.add(name, seed, Result(wanted[name], scores))
                    yield name


def _parts(case: Case) -> tuple[str, ...]:
    """Rows that one training fills."""
    return (case.name, *(_CLASSIFIERS if case.name == "caption" else ()))


def _run(
    programs: Programs,
    case: Case,
    seed: int,
    folder: Path,
    where: Places,
    overrides: Sequence[str],
    threads: int | None,
) -> dict[str, Scores]:
    """Train, and evaluate if need be: the scores of every row."""
    place = (setting("hydra.run.dir", folder), setting("paths.shards", where.shards))
    paths = [override for override in overrides if override.startswith("paths.")]  # a checkpoint has none
    programs.call("train.py", *case.settings, *place, f"seed={seed}", *overrides, threads=threads)
    return {
        name: read_run(
            folder if name == case.name else _evaluated(programs, folder, [*place, *paths], name, threads)
        ).scores
        for name in _parts(case)
    }


def _evaluated(
    programs: Programs, folder: Path, place: Sequence[str], case: str, threads: int | None
) -> Path:
    """Evaluate the caption model of a run with another classifier; returns the evaluation's folder."""
    mode = case.removeprefix("classifier_")
    what = (setting("ckpt", folder / "checkpoints" / "last.ckpt"), f"classifier={mode}", "data=toy")
    programs.call("evaluate.py", *what, *place, "trainer=cpu", threads=threads)
    found = (path.parent for path in sorted(folder.glob(f"{EVALUATIONS}/*/{MARKER}")))
    return next(path for path in found if read_run(path).settings.classifier == mode)
