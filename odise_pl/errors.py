"""Errors that a user can fix, and how a program ends with one."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Raised by libraries for options that cannot be, which are not imported here: they would bring torch along.
_OF_LIBRARIES = ("MisconfigurationException", "MissingMandatoryValue")


class UserError(Exception):
    """Its message says what is wrong and the way out; no traceback is needed to act on it."""


class SettingError(UserError, ValueError):
    """A configuration value is out of range; the message names the option."""


def check_number(
    name: str, value: object, least: float = 0, whole: bool = True, most: float = math.inf
) -> None:
    """Raise SettingError unless a setting is a number from ``least`` to ``most``.

    Args:
        name: the setting as on the command line.
        value: of the setting.
        least, most: smallest and largest allowed value.
        whole: whether it has to be an integer.
    """
    wanted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted) or not least <= value <= most:
        limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise SettingError(f"{name}={value} must be a {'whole ' if whole else ''}number, {limits}")


def user_error(error: BaseException | None) -> BaseException | None:
    """The user error in a chain of causes; libraries wrap what our constructors raise."""
    seen: set[int] = set()  # an error raised while another is handled may close a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError) or type(error).__name__ in _OF_LIBRARIES:
            return error
        if type(error).__name__ == "InstantiationException" and "unexpected keyword argument" in str(error):
            return error  # a setting that this version does not know; the message names it and its place
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def report_user_errors() -> Iterator[None]:
    """End the program with ``error: MESSAGE`` and status 1 when the user can fix it; 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        if user_error(error) is None and error.filename is None:
            raise
        raise SystemExit(f"error: {user_error(error) or error}") from error
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        raise SystemExit(f"error: {known}") from error
