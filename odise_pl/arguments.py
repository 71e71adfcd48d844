"""Numbers on command lines, for argparse, which names the option when they are refused."""

from __future__ import annotations

import argparse


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
