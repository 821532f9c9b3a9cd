from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a learner keeps what it learns; not made yet."""
    return tmp_path / "learned"
