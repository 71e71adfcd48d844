from __future__ import annotations

import operator
import os

import pytest

from odise_pl.data.prepare import processes
from odise_pl.data.records import DataError


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_with_their_task(workers: int) -> None:
    assert dict(processes.run(operator.neg, [5, 6, 7], workers)) == {0: -5, 1: -6, 2: -7}


def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="a worker process was killed"):
        list(processes.run(os._exit, [1, 1, 1], 2))
