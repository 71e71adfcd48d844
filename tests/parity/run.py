"""One case of any kind to its checks."""

from __future__ import annotations

from tests.parity.checks import Check
from tests.parity.criterion import check_criterion
from tests.parity.evaluation import check_evaluation
from tests.parity.isolated import (
    check_grounding,
    check_noun_phrases,
    check_postprocess,
    check_text,
)
from tests.parity.models import WeightFiles
from tests.parity.optimiser import check_optimiser
from tests.parity.records import Case, kind_of, read_cases
from tests.parity.training import check_training


def check_case(case: Case, files: WeightFiles) -> list[Check]:
    """Every check that the record of a case allows.

    Raises:
        UserError: the case or its weights are missing, damaged or do not fit.
    """
    kind = kind_of(case)
    if kind == "evaluation":
        return check_evaluation(case, files)
    if kind == "training":
        return check_training(case, files)
    if kind == "optimiser":
        return check_optimiser(case, read_cases(case.folder), files)
    if kind == "text":
        return check_text(case, files)
    alone = {
        "criterion": check_criterion,
        "grounding": check_grounding,
        "postprocess": check_postprocess,
        "noun_phrases": check_noun_phrases,
    }
    return alone[kind](case)
