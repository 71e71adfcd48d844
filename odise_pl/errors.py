"""Errors that a user can fix, and how a program reports them."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Raised by libraries for invalid options. Known by name, because importing the classes would load torch.
_LIBRARY_ERRORS = ("MisconfigurationException", "MissingMandatoryValue")

_REFUSED_STATUS = (401, 403)

_UNKNOWN = re.compile(r"'(\S+)'.*unexpected keyword argument '(\w+)'.*full_key: (\S+)", re.DOTALL)
_OF_SETTINGS = (
    "unexpected keyword argument",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.Trainer",
)


class UserError(Exception):
    """An error whose message says what is wrong and how to fix it; shown without a traceback."""


class SettingError(UserError, ValueError):
    """An option has a value that cannot be used; the message names the option."""


class DownloadError(UserError, OSError):
    """A file cannot be downloaded or is not the one that was asked for; nothing is kept under its name."""


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


def check_flag(name: str, value: object) -> None:
    """Raise SettingError unless ``value`` is true or false: any other text would count as true."""
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value}: choose true or false")


def find_user_error(error: BaseException | None) -> BaseException | None:
    """The first user error in a chain of causes: libraries wrap what our constructors raise."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # chains may be circular
        chain.append(error)
        error = error.__cause__ or error.__context__
    return next((one for one in chain if isinstance(one, UserError)), None) or next(
        (one for one in chain if _is_of_library(one)), None
    )


def _is_of_library(error: BaseException) -> bool:
    """Whether a library refuses a setting: an unknown one, or one of Lightning's; its message names it."""
    name, text = type(error).__name__, str(error)
    return name in _LIBRARY_ERRORS or (
        name == "InstantiationException" and any(words in text for words in _OF_SETTINGS)
    )


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
        raise SystemExit(f"error: {_message(known)}") from error


def _message(error: BaseException) -> str:
    """Its text; a setting that a part does not have, in the words of the command line."""
    found = _UNKNOWN.search(str(error))
    if found is None:
        return str(error)
    target, name, place = found.groups()
    key = f"{re.sub(r'^model[.](?=backbone|clip|captioner)', '', place)}.{name}"
    return (
        f"{key}: {target.rpartition('.')[2]} has no such setting; remove it (~{key}), or choose another part"
    )


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn errors of the Hub's client into a DownloadError with a way out."""
    from huggingface_hub import constants, errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repository}"
        raise DownloadError(
            f"{repository} asks you to accept its licence: open {page}, accept it, and run: hf auth login"
        ) from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{repository} is not the name of a repository: give OWNER/NAME") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repository} is not on the Hub, or private: check the name, or run: hf auth login"
        ) from error
    except Exception as error:  # of the client's HTTP library, which is another in each version
        way_out = "run the command again"
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            reason = f"the Hub answered {status} ({_first_line(error)})"
            way_out = "run: hf auth login" if status in _REFUSED_STATUS else way_out
            if isinstance(error, errors.EntryNotFoundError):
                way_out = "choose another repository, or download the file that you need and give its path"
        elif isinstance(error, OSError) and error.errno is not None:  # of the disk
            reason = str(error)
        elif os.environ.get("HF_HUB_OFFLINE", "0") != "0":
            reason = "HF_HUB_OFFLINE forbids downloads; unset it"
        else:
            reason = (
                f"{constants.ENDPOINT} cannot be reached, or the connection was lost ({_first_line(error)})"
            )
        raise DownloadError(f"{repository}: {reason}; {way_out}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
