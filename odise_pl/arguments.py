"""What commands have in common: numbers for argparse, which names the option, and errors as one message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from odise_pl.errors import UserError

_P = ParamSpec("_P")


def positive(text: str) -> int:
    """An integer of 1 or more.

    Raises:
        ArgumentTypeError, ValueError: it is none.
    """
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An integer of 0 or more.

    Raises:
        ArgumentTypeError, ValueError: it is none.
    """
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def ends_with_message(main: Callable[_P, int]) -> Callable[_P, int]:
    """A command that shows what its user can put right as a message alone, and has the exit status 1 then."""

    @wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run
