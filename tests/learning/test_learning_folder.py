"""What a user may do to the folder between two runs, and two calculators that use the same one."""

from pathlib import Path

import pytest
from pupils import SMALL, Teacher, crystal

from neuralil_ase import Learner
from neuralil_ase.errors import DataError, ModelFileError, OutputError
from neuralil_ase.farm import digest
from neuralil_ase.learning.desk import Desk
from neuralil_ase.learning.records import Folder
from neuralil_ase.learning.request import Request


def label(folder: Path, teacher: Teacher) -> Folder:
    """One label of the same frame, as a run would ask for it."""
    kept = Folder(folder)
    Desk(teacher, kept, None, 0, None, None).label([Request(crystal(), "unsure", "a test")], None)
    return kept


def test_a_label_that_was_removed_is_asked_again_if_it_is_needed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = label(folder, Teacher())
    kept.file(digest(crystal())).unlink()
    assert not Folder(folder).answered
    assert "labels that are missing: 1" in caplog.text
    again = label(folder, Teacher())
    assert again.calls == 2
    assert [record.digest for record in again.answered] == [digest(crystal())]


def test_a_damaged_model_may_be_moved_away(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half a model")
    with pytest.raises(ModelFileError, match="move it away: the next run trains"):
        Learner(Teacher(), folder, settings=SMALL)


def test_records_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "queries.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"queries\.jsonl cannot be read"):
        Learner(Teacher(), folder, settings=SMALL)


def test_calculators_with_one_folder_are_told_to_share_a_learner(folder: Path) -> None:
    first = Learner(Teacher(), folder, settings=SMALL)
    Learner(Teacher(), folder, settings=SMALL)
    with pytest.raises(OutputError, match="share a learner"):
        first.begin(Request(crystal(), "first", "a test"))
