"""The generated pages are up to date with the code."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "cli.md"])
def test_a_page_is_what_make_reference_writes(page: str) -> None:
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")

    assert written == load().PAGES[page](), "run `make reference`"


def test_every_setting_says_what_it_does() -> None:
    rows = [line for line in load().settings_page().splitlines() if line.startswith("| TORPOR_")]

    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []
