"""The generated configuration reference."""

import sys
from pathlib import Path

import pytest

from scripts.docs import configuration


@pytest.fixture(scope="module")
def files() -> dict[str, configuration.ConfigFile]:
    return {file.name: file for file in configuration.files()}


def rows(file: configuration.ConfigFile) -> dict[str, tuple[str, str]]:
    return {entry.key: (entry.value, entry.meaning) for entry in file.entries}


def test_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["configuration", "--check"])
    configuration.main()


def test_check_fails_for_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["configuration"])
    configuration.main()
    (tmp_path / "page.md").write_text("old", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["configuration", "--check"])
    with pytest.raises(SystemExit, match=r"configuration\.md"):
        configuration.main()


def test_meanings_come_from_comments_and_docstrings(files: dict[str, configuration.ConfigFile]) -> None:
    backbone = rows(files["backbone/stable_diffusion_v1"])
    assert backbone["backbone.timesteps"][0] == "[0]"
    assert "0..999" in backbone["backbone.timesteps"][1]  # the comment beside the key
    assert "feature pyramid" in backbone["backbone.channels"][1]  # the docstring of BackboneSettings
    assert rows(files["model/odise_label"])["fusion"][1].startswith("How scores")  # the comment above the key


def test_defaults_come_from_the_class_where_the_file_has_none(
    files: dict[str, configuration.ConfigFile],
) -> None:
    sizes = rows(files["backbone/stable_diffusion_v1"])
    assert sizes["backbone.architecture.unet_channels"][0] == "[320, 640, 1280, 1280]"
    assert sizes["backbone.architecture.text_vocabulary"][0] == "49408"  # a constant by name
    assert sizes["backbone.architecture.linear_projection"][0] == "false"


def test_other_choices_show_what_they_change(files: dict[str, configuration.ConfigFile]) -> None:
    known = {entry.key: entry for entry in files["trainer/auto"].entries}
    changes = configuration.changes_of(files["trainer/cpu"], known)
    assert changes == [("trainer.accelerator", "cpu", ""), ("trainer.precision", "32-true", "")]


def test_a_key_without_meaning_is_refused(files: dict[str, configuration.ConfigFile]) -> None:
    file = configuration.ConfigFile("trainer/cpu")
    file.entries = [configuration.Entry("trainer.mystery", "1", "", "")]
    with pytest.raises(SystemExit, match=r"trainer\.mystery"):
        configuration.page([*files.values(), file])
