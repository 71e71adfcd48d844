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
        ArgumentTypeError: it is none.
    """
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An integer of 0 or more.

    Raises:
        ArgumentTypeError: it is none.
    """
    return _at_least(0, text)


def seed(text: str) -> int:
    """A seed of random numbers, below 2**32 as NumPy has it.

    Raises:
        ArgumentTypeError: it is none.
    """
    value = not_negative(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not below 2**32")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not an integer") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def ends_with_message(main: Callable[_P, int]) -> Callable[_P, int]:
    """A command that shows what its user can put right as a message alone, and has the exit status 1 then.

    Interrupted by Ctrl-C, it has the status of shells, 130.
    """

    @wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return run
