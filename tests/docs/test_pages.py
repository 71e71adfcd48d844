"""Pictures and links of the documentation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|href=\"([^\"]+)\"")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"\s]+)")


def without_code(page: Path) -> str:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def targets(pattern: re.Pattern[str], page: Path) -> list[str]:
    found = ["".join(match) for match in pattern.findall(without_code(page))]
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as where the repository is shown; and those written as HTML."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = [
        re.sub(r"[`*]|\]\([^)]*\)", "", line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    slugs = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    return {*slugs, *re.findall(r"(?:id|name)=\"([^\"]+)\"", text)}


def test_pictures_exist_and_each_is_used() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in targets(PICTURE, page)}
    missing = [str(path.relative_to(ROOT)) for path in shown if not path.is_file()]
    assert not missing
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in IMAGES.iterdir() if path.name not in text] == []


def test_contributors_are_led_to_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:odise_pl|tests|conf|docs|scripts)/[\w/.]+)`", text)
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for target in targets(LINK, ROOT / name):
        path, _, anchor = target.partition("#")
        page = ROOT / path if path else ROOT / name
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert not broken
