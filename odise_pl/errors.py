"""Errors that a user can fix, and how a program reports them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Raised by libraries for invalid options. Known by name, because importing the classes would load torch.
_LIBRARY_ERRORS = ("MisconfigurationException", "MissingMandatoryValue")

_OF_SETTINGS = (
    "unexpected keyword argument",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.Trainer",
)


class UserError(Exception):
    """An error whose message says what is wrong and how to fix it; shown without a traceback."""


class SettingError(UserError, ValueError):
    """An option has a value that cannot be used; the message names the option."""


def check_number(
    name: str, value: object, least: float = 0, whole: bool = True, most: float = math.inf
) -> None:
    """Raise SettingError unless ``value`` is a number, or with ``whole`` an integer, in ``least``..``most``.

    ``name`` is the setting as on the command line.
    """
    wanted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted) or not least <= value <= most:
        limits = f"of at least {least}" if most == math.inf else f"in {least}..{most}"
        raise SettingError(f"{name}={value} must be {'an integer' if whole else 'a number'} {limits}")


def find_user_error(error: BaseException | None) -> BaseException | None:
    """The first user error in a chain of causes: libraries wrap what our constructors raise."""
    seen: set[int] = set()  # chains may be circular
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError) or type(error).__name__ in _LIBRARY_ERRORS:
            return error
        if type(error).__name__ == "InstantiationException" and any(w in str(error) for w in _OF_SETTINGS):
            return error  # an unknown setting, or one that Lightning's Trainer refuses; the message names it
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Exit with ``error: MESSAGE`` and status 1 after an error that the user can fix; 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        known = find_user_error(error)
        if known is None and isinstance(error, OSError) and error.filename is not None:
            known = error  # its message names the file
        if known is None:
            raise
        raise SystemExit(f"error: {known}") from error
