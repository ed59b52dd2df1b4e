"""What was never run is said in one table, and the README says the same."""

from __future__ import annotations

from pathlib import Path

from models.never_exercised import NEVER_EXERCISED

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_lists_what_no_test_has_run_row_by_row() -> None:
    _, _, section = README.read_text().partition("\n## What it does not do yet\n")
    listed = [line.removeprefix("- ") for line in section.split("\n## ")[0].splitlines() if line.startswith("- ")]
    assert listed == list(NEVER_EXERCISED)
