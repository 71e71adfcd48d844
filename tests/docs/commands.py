"""Checks that commands in documentation parse, without running them."""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from odise_pl.cli import app
from odise_pl.errors import SettingError
from odise_pl.runs.conf import CONF, compose_config
from scripts.docs.configuration import ConfigFile

ROOT = Path(__file__).parents[2]
UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of it in typer
INLINE = re.compile(r"(?<!`)`((?:odise|make|python(?= (?:\S+\.py|-m (?:scripts|tests)\b))) [^`]+)`(?!`)")
DEFAULTS = {name: ConfigFile(name).defaults + ConfigFile("shared").defaults for name in ("train", "evaluate")}
GROUPS = {
    name: {group for item in items if isinstance(item, dict) for group in item}
    for name, items in DEFAULTS.items()
}
PLACEHOLDER = re.compile(r"\[?(?:[A-Z_]+=.*|\.\.\.)|.*=[A-Z_]+")


class BadCommand(Exception):
    """A command does not parse."""


def commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """Commands in fenced blocks, and those in inline code; the flag says whether they are complete."""
    parts = re.split(r"^ *```(\w*)\n(.*?)^ *```$", page, flags=re.MULTILINE | re.DOTALL)
    for text, language, block in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        for code in INLINE.findall(text):
            yield from ((words, False) for words in split(code.replace("\n", " ").replace("\\|", "|")))
        if language in ("bash", ""):
            found = ((words, "..." not in words) for words in split(block))
            yield from (item for item in found if language or item[0][0] in ("odise", "make", "python"))


def split(block: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, with its variables replaced."""
    variables: dict[str, str] = {}
    pending = ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += re.sub(r"\s\d?>>?\s*\S+", "", line) + "\n"  # without redirections
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        try:
            words = [variables.get(word.removeprefix("$"), word) for word in lexer]
        except ValueError:  # a string of several lines
            continue
        pending = ""
        for command in "\0".join(re.sub(r"^[;&|]+$", "\n", word) for word in words).split("\n"):
            simple = [word for word in command.strip("\0").split("\0") if word not in ("", "do", "then", "$")]
            while simple and re.match(r"[A-Za-z_]\w*=", simple[0]):
                name, _, value = simple.pop(0).partition("=")
                variables |= {} if simple else {name: "\0".join(shlex.split(value))}
            if simple:
                yield [re.sub(r"\$\w+", "1", word) for word in simple]


def check(words: Sequence[str], complete: bool = True) -> None:
    """Check one command; commands of other programs are ignored.

    Raises:
        BadCommand: says what is wrong.
    """
    program, *arguments = Path(words[0]).name, *words[1:]
    for i, word in enumerate(words):  # also behind torchrun, sbatch and the like
        if Path(word).name in ("train.py", "evaluate.py", "train.sbatch"):
            _exists(word)
            check_overrides("evaluate" if "evaluate" in word else "train", words[i + 1 :])
            return
    if program == "odise":
        check_odise(arguments, complete)
    elif program == "make":
        check_make(arguments, complete)
    elif re.fullmatch(r"python[\d.]*", program) and arguments[0] == "-m":
        check_module(*arguments[1:])
    elif re.fullmatch(r"python[\d.]*", program) and arguments[0].startswith("scripts/"):
        check_options(_exists(arguments[0]), arguments[1:])


def check_odise(words: Sequence[str], complete: bool) -> None:
    command: Any = typer.main.get_command(app)
    names, rest = ["odise"], list(words)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        if re.fullmatch(r"[A-Z]+|\.\.\.", rest[0]):
            return
        if rest[0] not in command.commands:
            raise BadCommand(f"{' '.join(names)} has no command {rest[0]}")
        command = command.commands[rest[0]]
        names.append(rest.pop(0))
    if names[1:] in (["train"], ["evaluate"]):
        check_overrides(names[1], rest)
        return
    if "--help" in rest or (hasattr(command, "commands") and not (complete or rest)):
        return
    rest = [
        word for before, word in zip(["", *rest], rest, strict=False) if word != "..." or before[:2] == "--"
    ]
    with TemporaryDirectory() as folder, chdir(folder):
        _parse(command, names[-1], rest, complete)


def _parse(command: Any, name: str, words: list[str], complete: bool) -> None:
    try:
        command.make_context(name, list(words))
    except UsageError as error:
        missing = re.search(r"'([^']+)' does not exist", error.format_message())
        if missing and not Path(missing[1]).is_absolute():
            Path(missing[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(missing[1]).touch()
            _parse(command, name, words, complete)
        elif complete or type(error).__name__ != "MissingParameter":
            raise BadCommand(error.format_message()) from error


def check_overrides(name: str, words: Sequence[str]) -> None:
    """Check Hydra's options, and compose the configuration."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for option in ("--help", "--hydra-help", "--resolve", "--multirun", "-m"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", nargs="?")
    parser.add_argument("--package", "-p")
    parser.add_argument("overrides", nargs="*")
    try:
        known, unknown = parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise BadCommand(str(error)) from error
    if unknown:
        raise BadCommand(f"no such options: {unknown}")
    groups: list[str] = []
    settings: list[str] = []
    for word in known.overrides:
        if not _is_placeholder(word):
            grouped = _is_group(word) or word.startswith("hydra/")  # a plugin's
            (groups if grouped else settings).append(_first_value(word))
    unknown = [word for word in groups if word.split("=")[0] not in GROUPS[name] and "/" not in word]
    if unknown:
        raise BadCommand(f"{name}.py has no groups {unknown}")
    if not all(
        _has(compose(name), word.partition("=")[0]) for word in settings
    ):  # most are: composing is slow
        for word in settings:
            if not _has(compose(name, *groups), word.partition("=")[0]):
                compose(name, *groups, word)


def _is_group(override: str) -> bool:
    return (CONF / override.partition("=")[0]).is_dir()


def _is_placeholder(word: str) -> bool:
    key = word.partition("=")[0]
    return bool(PLACEHOLDER.fullmatch(word)) and (key.isupper() or "=" not in word or _is_group(word))


@cache
def _first_value(word: str) -> str:
    """An override with the first value of a sweep; all choices of a group have to exist."""
    try:
        override = OverridesParser.create().parse_override(word)
        if override.is_interval_sweep():
            values = [override.value().start]
        elif override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        else:
            values = [word.partition("=")[2]]
    except HydraException as error:
        raise BadCommand(str(error)) from error
    choices = ",".join(map(str, values)).strip("[]").split(",") if _is_group(word) else []
    missing = [
        choice for choice in choices if not (CONF / override.key_or_group / f"{choice}.yaml").is_file()
    ]
    if missing:
        raise BadCommand(f"{override.key_or_group} has no choice {missing[0]}")
    return f"{override.get_key_element()}={values[0]}" if override.is_sweep_override() else word


@cache
def compose(name: str, *overrides: str) -> Any:
    try:
        config = compose_config(name, ["run_dir=DIR", *overrides])
    except SettingError as error:
        raise BadCommand(str(error)) from error
    return OmegaConf.to_container(config)


def _has(config: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return False
        config = config[name]
    return True


def check_make(words: Sequence[str], complete: bool) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words if "=" not in word]
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    for name in variables:
        if f"$({name})" not in makefile:
            raise BadCommand(f"the Makefile has no variable {name}")
    for target in targets:
        rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
        if rule is None and target.islower():
            raise BadCommand(f"the Makefile has no target {target}")
        for line in rule[1].splitlines() if rule and "ARGS" in variables else ():
            if "$(ARGS)" in line:
                command = line.replace("$(BIN)/", "").replace("$(ARGS)", variables["ARGS"])
                check(shlex.split(command), complete and "..." not in command)


def check_module(name: str, *words: str) -> None:
    path = ROOT.joinpath(*name.split("."))
    files = [file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file()]
    if files:
        check_options(files[0], words)
    elif (ROOT / name.split(".")[0]).is_dir() or importlib.util.find_spec(name) is None:
        raise BadCommand(f"there is no module {name}")


def check_options(file: Path, words: Sequence[str]) -> None:
    """Options of a script stand in its source, spelt out or as a parameter of its function."""
    source = file.read_text(encoding="utf-8")
    for option in re.findall(r"^--([\w-]+)", "\n".join(words), re.MULTILINE):
        if option != "help" and not re.search(rf"--{option}\b|\b{option.replace('-', '_')}:", source):
            raise BadCommand(f"{file.name} has no option --{option}")


def _exists(name: str) -> Path:
    if not (ROOT / name).is_file():
        raise BadCommand(f"there is no file {name}")
    return ROOT / name
