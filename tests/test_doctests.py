"""Examples in docstrings run, and give what stands below them."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neuralil_ase"
MODULES = [
    ".".join(("neuralil_ase", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0, "examples that are skipped show nothing"
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert "neuralil_ase.calculator" in MODULES
