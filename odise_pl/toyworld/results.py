"""The scores behind the small world's tables, in a file beside them, from which any machine can go on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from odise_pl.errors import SettingError, UserError
from odise_pl.files import write_text
from odise_pl.runs.record import digest_of

Scores = Mapping[str, Mapping[str, float]]  # of each evaluation set by metric, as fractions


class ResultsError(UserError, ValueError):
    """The file of results is damaged."""


@dataclass(frozen=True)
class Result:
    """A run that came to its end.

    Attributes:
        digest: of everything that decides the scores, see :func:`digest`.
        scores: what was measured.
    """

    digest: str
    scores: Scores


class Results:
    """Results by case and seed, kept in a JSON file, which several processes may add to.

    Args:
        path: of the file; it and its folder are made when there is something to keep.

    Raises:
        ResultsError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs = self._read()

    def matching(self, digests: Mapping[str, str]) -> dict[str, list[Scores]]:
        """Scores of the runs that have these digests, by case, in the order of their seeds."""
        return {
            case: [run.scores for _, run in sorted(self._runs.get(case, {}).items()) if run.digest == digest]
            for case, digest in digests.items()
        }

    def has(self, case: str, seed: int, digest: str) -> bool:
        """Whether this very run is there."""
        known = self._runs.get(case, {}).get(seed)
        return known is not None and known.digest == digest

    def add(self, case: str, seed: int, result: Result) -> None:
        """Keep a result, in place of one of other settings; the file is written whole or not at all."""
        with self._alone():
            self._runs.setdefault(case, {})[seed] = result

    def others(self, digests: Mapping[str, str]) -> list[tuple[str, int]]:
        """Case and seed of what was made with other settings than these, by case."""
        return [
            (case, seed)
            for case, runs in self._runs.items()
            for seed, result in runs.items()
            if result.digest != digests.get(case)
        ]

    def drop(self, case: str, seed: int) -> None:
        """Forget a result."""
        with self._alone():
            self._runs.get(case, {}).pop(seed, None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Change what the file holds by now, while no other process does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._runs = self._read()
            yield
            self._write()
        finally:
            os.close(folder)  # with the lock

    def _read(self) -> dict[str, dict[int, Result]]:
        if not self.path.exists():
            return {}
        try:
            return _parsed(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ResultsError(
                f"{self.path} does not hold results of the tables ({error}); delete it, or name another --out"
            ) from error

    def _write(self) -> None:
        plain = {
            case: {str(seed): asdict(result) for seed, result in sorted(runs.items())}
            for case, runs in sorted(self._runs.items())
            if runs
        }
        write_text(self.path, json.dumps(plain, indent=1) + "\n")


def _parsed(plain: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[int, Result]]:
    return {case: {int(seed): _result(**run) for seed, run in runs.items()} for case, runs in plain.items()}


def _result(digest: str, scores: Mapping[str, Mapping[str, float]]) -> Result:
    return Result(
        digest, {name: {metric: float(v) for metric, v in some.items()} for name, some in scores.items()}
    )


def digest(settings: Sequence[str], weights: str, conf: Path = Path("conf")) -> str:
    """Changes with everything that decides what a training ends with, but for the place of the shards.

    Args:
        settings: of ``train.py``.
        weights: digest of the frozen models, see :func:`weights_digest`.
        conf: folder of the configuration.

    Raises:
        SettingError: there is no such setting or configuration.
    """
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            return digest_of(compose("train", [*settings, "run=tables"]), weights)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(f"{' '.join(settings)}: {error}") from error


def weights_digest(folder: Path) -> str:
    """Of all weight files and their configurations in a folder."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()
