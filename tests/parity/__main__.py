"""``python -m tests.parity DIR [--case NAME ...]``: the network against recorded numbers, as a table.

DIR holds cases, NAME.json beside NAME.safetensors, and the weights they name. The exit status is 0 if all
checks pass, 1 if one does not, 2 if a case cannot be checked at all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the recorded cases are")
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME", help="only these cases")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of cases that name none")
    parser.add_argument("--diffusion", type=Path, metavar="FILE", help="the diffusion model's weights")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="CLIP's weights")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print; returns the exit status."""
    chosen = parse(arguments)
    from odise_pl.errors import UserError
    from tests.parity.checks import table
    from tests.parity.models import WeightFiles
    from tests.parity.records import read_cases
    from tests.parity.run import check_case

    files = WeightFiles(chosen.weights, chosen.diffusion, chosen.clip)
    start, results, problems = time.perf_counter(), [], []
    try:
        cases = read_cases(chosen.folder, chosen.case)
        for case in cases:
            try:
                results += [(case.name, check) for check in check_case(case, files)]
            except UserError as error:
                problems.append(f"{case.name}: {error}")
            except (KeyError, IndexError) as error:
                # what is optional in a record is asked for; the rest has to be there
                problems.append(f"{case.name}: its record lacks something ({type(error).__name__}: {error})")
    except UserError as error:
        problems.append(str(error))
    print(table(results))
    failed = sum(not check.ok for _, check in results)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(results)} checks, {failed} not ok, {time.perf_counter() - start:.0f} s")
    return 2 if problems or not results else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
