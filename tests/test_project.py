"""The project's own description: it promises only what is used."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_extra_is_installed_by_the_makefile_or_told_in_the_readme() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = set(re.findall(r"\.\[(\w+)\]", (ROOT / "Makefile").read_text() + (ROOT / "README.md").read_text()))
    assert set(extras) == used
