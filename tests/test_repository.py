"""Properties of the repository as a whole."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import odise_pl

ROOT = Path(__file__).parents[1]
# Spelt with brackets so that this file does not match itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:[w]ork|[r]oot|[h]ome)/",
    "the address of a registry": r"[p]ypi\.org|[p]ythonhosted\.org|[d]ownload\.pytorch\.org|[a]naconda\.org",
    "a user name in an address": r"[a-z]+://[^\s/@\"']+:[^\s/@\"']+@",
}


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pins() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    exact = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line) for line in lines]
    assert lines
    assert all(exact), "the lock has only exact pins"
    return {canonicalize_name(match[1]): Version(match[2]) for match in exact if match}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [line for group in project["optional-dependencies"].values() for line in group]
    found = [Requirement(line) for line in project["dependencies"] + optional]
    return [requirement for requirement in found if requirement.name != project["name"]]  # its own extras


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tracked_files_name_no_machine(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found, f"{what}: {found}"


def test_top_level_has_no_stray_files() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    folders = {"odise_pl", "conf", "data", "docs", "notebooks", "scripts", "tests", ".ci"}
    files = {"train.py", "evaluate.py", "environment.yml", "requirements.lock", "pyproject.toml"}
    pages = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "mkdocs.yml"}
    assert top == folders | files | pages | {"Makefile", ".gitignore"}


def test_lock_satisfies_the_ranges() -> None:
    locked = pins()
    for requirement in requirements():
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{version} is not {requirement}"


def test_conda_environment_uses_the_lock() -> None:
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yml"))
    assert isinstance(environment, dict)
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_pipeline_runs_lint_docs_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"set -euo pipefail", "make lint", "make docs", "make test COVERAGE=85"} <= set(
        script.read_text(encoding="utf-8").splitlines()
    )


def test_modules_import_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("socket.connect", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(f"socket.{name}", lambda *_, **__: pytest.fail("network access at import"))
    for module in pkgutil.walk_packages(odise_pl.__path__, "odise_pl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_package_does_not_import_torch() -> None:
    code = "import sys, odise_pl; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_package_offers_its_public_names() -> None:
    assert all(getattr(odise_pl, name).__module__.startswith("odise_pl.") for name in odise_pl.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        odise_pl.Segmentor  # noqa: B018
