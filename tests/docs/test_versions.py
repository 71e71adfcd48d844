"""The version is the same wherever it is written."""

import re
from pathlib import Path

from omegaconf import OmegaConf

import odise_pl

ROOT = Path(__file__).parents[2]


def test_version_is_the_same_everywhere() -> None:
    newest = re.search(
        r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    citation = OmegaConf.to_object(OmegaConf.load(ROOT / "CITATION.cff"))
    assert isinstance(citation, dict)
    assert newest is not None
    assert [odise_pl.__version__, str(citation["date-released"])] == [newest[1], newest[2]]
    assert citation["version"] == newest[1]
