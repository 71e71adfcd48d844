"""Tables that compare finished runs with each other and with the paper's. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from omegaconf import DictConfig, OmegaConf

from odise_pl.files import write_text
from odise_pl.metrics.tables import NONE, Table
from odise_pl.runs.comparison import SCORES, Row, as_json, difference_table, score_table
from odise_pl.runs.conf import CONF, compose_config
from odise_pl.runs.finished import FinishedRun
from odise_pl.runs.plot import draw
from odise_pl.runs.published import ABLATIONS, PUBLISHED_BACKBONE, STANDARD, Ablation
from odise_pl.runs.record import AblationSettings, relevant_settings, resolve_settings

_FIELDS = [field.name for field in fields(AblationSettings)]
# Conditions that follow from the ablation's settings, unless they differ between rows of the same settings.
_FOLLOWING = (
    "backbone.",
    "captioner.",
    "classifier.",
    "data.words",
    "grounding",
    "model.method",
    "model.supervision",
)
_SPLIT = "data.unseen"  # of labels, which no published number of the tables is of
_OF_FUSION = re.compile(r"^classifier\.(?!mode$)")
# what makes a run one of a method, beside its parts
_OF_METHOD = (
    "model.supervision",
    *(f"classifier.{name}" for name in ("mode", "regions", "rule", "objectness_share")),
)
_OF_BACKBONE = re.compile(r"backbone\.(?!.*(weights|unet|timesteps)$)")
_NOTES = """\
* Scores are in percent: the mean over seeds ± half the width of its 95 % interval (Student's t).
* Differences are paired: means over the seeds that both rows have. A difference is decided if its interval
  excludes 0. Of twenty true ties, one looks decided.
* The names of rows show in what other settings they differ from the reference.
* The paper's numbers are of models trained at full scale on COCO; timesteps, captioners, classifiers and
  backbones are those of its caption model.
* Step 0, the implicit captioner and both classifiers are fixed where they do not vary.
* The numbers of methods other than ODISE are their authors', of papers that measured them, or from memory of
  these; several methods have none for PQ. `docs/methods.md` says in what the presets differ.
* They stand beside the row that has the preset's supervision, COAT and way of naming masks, and no split.
* Backbones are named by their weights. Of the paper's, some were not published: `conf/backbone` says which
  network stands in for them. For Swin and ConvNeXt two may, which share the paper's number.
"""


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, except for the seed.

    Attributes:
        settings: of the runs.
        conditions: their other settings, by key.
        runs: of every seed.
    """

    settings: AblationSettings
    conditions: Mapping[str, str]
    runs: tuple[FinishedRun, ...]

    def scores(self) -> dict[str, dict[int | str, float]]:
        """As :attr:`Row.scores`; repetitions with the same seed are averaged."""
        values: dict[str, dict[int | str, list[float]]] = {}
        for run in self.runs:
            seed = str(run.folder) if run.seed is None else run.seed
            for name, by in run.scores.items():
                for score in (one for one in SCORES if one in by):
                    values.setdefault(f"{name}.{score}", {}).setdefault(seed, []).append(100 * by[score])
        return {column: {seed: fmean(v) for seed, v in by.items()} for column, by in values.items()}


def group_runs(runs: Sequence[FinishedRun]) -> list[Group]:
    """Runs by their settings, sorted; those of shortened evaluations are last."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.seed is None, run.seed or 0)):
        words = [str(getattr(run.settings, name)) for name in _FIELDS]
        short = run.conditions.get("trainer.limit_val_batches", "1.0") != "1.0"
        groups.setdefault(repr((short, words, sorted(run.conditions.items()))), []).append(run)
    return [Group(some[0].settings, some[0].conditions, tuple(some)) for _, some in sorted(groups.items())]


def ablation_rows(ablation: Ablation, runs: Sequence[FinishedRun]) -> list[tuple[Row, Group | None]]:
    """The paper's rows, without runs too, and others, each with its runs.

    Runs that differ in another setting of :data:`STANDARD` are skipped, except backbones without a timestep
    and captioner; other methods are only in the comparison of methods. The paper's numbers stand beside the
    row of each value that is most similar to the main reference.
    """
    absent = ["none"] if ablation.field == "backbone" else []
    fixed = {name: [value, *absent] for name, value in STANDARD.items() if name != ablation.field}
    groups = []
    for group in group_runs(runs):
        if group.settings.method.startswith("odise_"):
            fits = all(getattr(group.settings, name) in values for name, values in fixed.items())
        else:
            fits = ablation.field == "method"
        groups += [group] if fits else []
    standard = STANDARD.get(ablation.field, next(iter(ablation.rows)))
    by_value: dict[str, list[Group]] = {value: [] for value in ablation.rows}
    for group in groups:
        by_value.setdefault(getattr(group.settings, ablation.field), []).append(group)
    references = by_value[standard]
    rows = dict(zip(map(id, groups), _rows(groups, ablation.field, references), strict=True))
    pairs: list[tuple[Row, Group | None]] = []
    for value, some in by_value.items():
        known = ablation.rows.get(value)
        alike = [group for group in some if ablation.field != "method" or _is_preset(group)]
        plain = _most_similar(_main(references, groups) or some[0], alike) if alike else None
        for group in some:
            pairs.append((replace(rows[id(group)], paper=known if group is plain else None), group))
        if not some:
            pairs.append((Row(value, None, known, {}), None))
    return pairs


def _rows(groups: Sequence[Group], field: str, references: Sequence[Group]) -> list[Row]:
    """A row for each group, named by a field of the settings and by what differs from the main reference.

    Rows are compared with the most similar reference, and references with the main one.
    """
    main = _main(references, groups)
    names = [_name(group, field, groups, main) for group in groups]
    for i, group in enumerate(groups):  # whose differences are not recorded
        names[i] += f" ({group.runs[0].folder})" if names.count(names[i]) > 1 else ""
    chosen = [main if group in references else _most_similar(group, references) for group in groups]
    return [
        Row(name, None if other is None else names[groups.index(other)], None, group.scores())
        for name, group, other in zip(names, groups, chosen, strict=True)
    ]


def _main(references: Sequence[Group], groups: Sequence[Group]) -> Group | None:
    """The reference that is most like the paper's model, and of several the one that most rows are like."""

    def rank(reference: Group) -> tuple[bool, bool, bool, int, int]:
        captions = reference.settings.model == "caption"
        published = reference.settings.backbone == PUBLISHED_BACKBONE
        pretrained = reference.conditions.get("backbone.weights") != "random"
        like = sum(_most_similar(group, references) is reference for group in groups)
        return captions, published, pretrained, like, len(reference.runs)

    return max(references, key=rank, default=None)


def _most_similar(group: Group, others: Sequence[Group]) -> Group | None:
    def agreement(other: Group) -> tuple[bool, bool, int, bool]:
        one, two = group.settings, other.settings
        different = other.conditions.items() ^ group.conditions.items()
        same_time = one.learnable_time == two.learnable_time
        return one.model == two.model, one.backbone == two.backbone, -len(different), same_time

    return max(others, key=agreement, default=None)


def _name(group: Group, field: str, groups: Sequence[Group], main: Group | None) -> str:
    """The value of ``field``; beside rows of the same value, what differs from the main reference."""
    value = getattr(group.settings, field)
    beside = [other for other in groups if getattr(other.settings, field) == value]
    words = [value]
    for name in _FIELDS:
        own, varies = getattr(group.settings, name), {getattr(other.settings, name) for other in beside}
        # "none" follows from the backbone; without timesteps, no time embedding is learned
        follows = own == "none" or (name == "learnable_time" and group.settings.timesteps == "none")
        follows |= own == f"odise_{group.settings.model}"
        if len(varies) > 1 and not follows and (main is None or own != getattr(main.settings, name)):
            words.append(own if isinstance(own, str) else f"time {'' if own else 'not '}learned")
    first = next(other.conditions for other in beside if other.settings == group.settings)
    # a backbone beside others differs from its file in conf/backbone
    compared = field == "backbone" or (main is not None and group.settings.backbone != main.settings.backbone)
    plain = _standard(group.settings.backbone) if compared else {}
    alike = [other for other in groups if other.settings.method == group.settings.method]
    for key, own in sorted(group.conditions.items()):
        if key == _SPLIT:
            standard = None
        elif _set_by_preset(group.settings.method, key) == own and all(
            other.conditions.get(key) == own for other in alike
        ):
            standard = own
        elif plain and _OF_BACKBONE.match(key):
            standard = own if main is not None and main.conditions.get(key) == own else plain.get(key)
        elif main is None or field == "method" or key.startswith(_FOLLOWING):
            standard = first.get(key)
        else:
            standard = main.conditions.get(key, own)
        words += [f"{_OF_FUSION.sub('fusion.', key)}={own}"] if own != standard else []
    return ", ".join(words)


def _is_preset(group: Group) -> bool:
    """Whether a run of a method is what the method's numbers are of; unknown methods and settings may be."""
    config = _preset(group.settings.method)
    wanted = {} if config is None else {key: str(OmegaConf.select(config, key)) for key in _OF_METHOD}
    same = all(group.conditions.get(key, value) == value for key, value in wanted.items())
    return same and _SPLIT not in group.conditions


def _set_by_preset(name: str, key: str) -> str | None:
    """The value that a preset gives to a setting; None if it keeps the default."""
    preset = _preset(name)
    if preset is None:
        return None
    value = str(OmegaConf.select(preset, key))
    return None if value == str(OmegaConf.select(_composed(), key)) else value


def _preset(name: str) -> DictConfig | None:
    """The settings of a training by a preset; None for names that are no preset."""
    return _composed(f"method={name}") if (CONF / "method" / f"{name}.yaml").is_file() else None


@cache
def _composed(*chosen: str) -> DictConfig:
    return compose_config("train", ["run=report", "run_dir=.", *chosen])


@cache
def _standard(backbone: str) -> dict[str, str]:
    """The settings in ``conf/backbone`` by its names, except those that choose weights and timesteps."""
    names = backbone.split("+")
    if not all((CONF / "backbone" / f"{name}.yaml").is_file() for name in names):
        return {}
    parts = ["backbone=two", *map("backbone@backbone.{}={}".format, ("first", "second"), names)]
    chosen = parts if len(names) == 2 else [f"backbone={backbone}"]
    config = _composed(*chosen)
    known = relevant_settings(resolve_settings(OmegaConf.masked_copy(config, ["backbone", "paths"])))
    return {key: str(value) for key, value in known.items() if _OF_BACKBONE.match(key)}


def ablation_tables(ablation: Ablation, runs: Sequence[FinishedRun]) -> tuple[list[Row], list[Table]]:
    """The rows of a comparison of the paper; its tables of scores and of differences."""
    pairs = ablation_rows(ablation, runs)
    more = {
        "model": [group.settings.model if group else NONE for _, group in pairs],
        "time learned": [_time_learned(group.settings) if group else NONE for _, group in pairs],
    }
    more.pop(ablation.field, None)
    rows, (scores, differences) = _tables(ablation.name, [row for row, _ in pairs], more)
    return rows, [replace(scores, notes=(*scores.notes, *ablation.notes)), differences]


def all_runs_tables(runs: Sequence[FinishedRun]) -> tuple[list[Row], list[Table]]:
    """A row for each combination of settings, compared with the first one, of ODISE if possible."""
    groups = group_runs(runs)
    ours = [group for group in groups if group.settings.method.startswith("odise_")]
    more = {
        name.replace("_", " "): [str(getattr(group.settings, name)) for group in groups] for name in _FIELDS
    }
    return _tables("all runs", _rows(groups, "model", (ours or groups)[:1]), more)


def _tables(title: str, rows: list[Row], more: Mapping[str, Sequence[str]]) -> tuple[list[Row], list[Table]]:
    return rows, [score_table(title, rows, more), difference_table(title, rows)]


def _time_learned(settings: AblationSettings) -> str:
    return NONE if settings.timesteps == "none" else "yes" if settings.learnable_time else "no"


def write(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Write the comparisons of the paper and of all runs; returns the paths.

    ``ablations.md`` has all tables, ``ablations.json`` the scores of every seed, ``ablations.png`` the plots;
    each table is also a CSV.
    """
    found = [*(ablation_tables(ablation, runs) for ablation in ABLATIONS), all_runs_tables(runs)]
    rows = {tables[0].title: some for some, tables in found}
    tables = [table for _, some in found for table in some if table.rows]
    folder.mkdir(parents=True, exist_ok=True)
    sections = [f"## {table.title}\n\n{table.markdown()}" for table in tables]
    texts = {
        "ablations.md": "\n".join([_NOTES, *sections]),
        "ablations.json": json.dumps({"tables": as_json(rows)}, indent=1) + "\n",
        **{f"{re.sub(r'[ ,]+', '_', table.title)}.csv": table.csv() for table in tables},
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    shown = {name: some for name, some in rows.items() if any(row.scores for row in some)}
    draw(shown).savefig(folder / "ablations.png", dpi=120)
    return [folder / name for name in (*texts, "ablations.png")]
