"""``python -m tests.parity DIR [--case NAME ...]``: compare the network with recorded numbers.

DIR has cases (NAME.json and NAME.safetensors) and their weights. The exit status is 0 if all checks pass,
1 if a check fails, 2 if a case cannot be checked.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from odise_pl.errors import UserError
from tests.parity.checks import Check, table
from tests.parity.criterion import check_criterion
from tests.parity.evaluation import check_evaluation
from tests.parity.isolated import check_grounding, check_noun_phrases, check_text
from tests.parity.optimiser import check_optimiser
from tests.parity.records import Case, kind_of, read_cases
from tests.parity.results import check_postprocess
from tests.parity.training import check_training

WITH_WEIGHTS = {
    "evaluation": check_evaluation,
    "training": check_training,
    "optimiser": check_optimiser,
    "text": check_text,
}
ALONE = {
    "criterion": check_criterion,
    "grounding": check_grounding,
    "postprocess": check_postprocess,
    "noun_phrases": check_noun_phrases,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the recorded cases")
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME", help="only these cases")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of cases that name none")
    chosen = parser.parse_args(arguments)
    start, results, problems = time.perf_counter(), list[tuple[str, Check]](), list[str]()
    try:
        for case in read_cases(chosen.folder, chosen.case):
            try:
                results += [(case.name, check) for check in check_case(case, chosen.weights)]
            except Exception as error:  # the other cases can still be checked
                problems.append(f"{case.name}: {type(error).__name__}: {error}")
    except UserError as error:
        problems.append(str(error))
    print(table(results))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    failed = sum(not check.ok for _, check in results)
    print(f"{len(results)} checks, {failed} not ok, {time.perf_counter() - start:.0f} s")
    return 2 if problems or not results else int(failed > 0)


def check_case(case: Case, weights: Path | None) -> list[Check]:
    """All checks of a case."""
    kind = kind_of(case)
    return ALONE[kind](case) if kind in ALONE else WITH_WEIGHTS[kind](case, weights)


if __name__ == "__main__":
    sys.exit(main())
