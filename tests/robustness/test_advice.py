"""What a message tells a user to do, done: everything is there afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from click.testing import CliRunner

from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_diag.commands import main

REMOVE = "remove it"


@pytest.fixture
def folder() -> Path:
    """A run that has ended, in ``run``, and its config."""
    made = processes.new_folder()
    shutil.copytree(processes.uninterrupted(), made / "run")
    return made


def resumed(folder: Path) -> str:
    """Go on with the run; the line that it was refused with, "" where it was not."""
    result = CliRunner().invoke(main, processes.command(folder / "tiny.toml", folder / "run"))
    assert (result.exit_code == 2) == bool(result.stderr), result.stderr
    return result.stderr


@pytest.mark.parametrize("name", ["results.json", "evals/prune.npz", "fingerprint.json"])
def test_a_file_that_is_removed_as_advised_comes_back_and_nothing_else_changes(name: str, folder: Path) -> None:
    damaged = folder / "run" / name
    damaged.write_text("{")
    assert f"{damaged}: " in (said := resumed(folder))
    assert REMOVE in said
    damaged.unlink()
    assert resumed(folder) == ""
    assert processes.differing(folder / "run", processes.uninterrupted()) == []


@pytest.mark.parametrize("stage", ["pretrain", "prune", "finetune", "prune-best"])
def test_a_stage_that_begins_anew_as_advised_leaves_the_others_their_rows(stage: str, folder: Path) -> None:
    state = folder / "run" / "ckpt" / f"state-{stage.removesuffix('-best')}.safetensors"
    if stage == "prune-best":
        lost = folder / "run" / "ckpt" / "prune-best.safetensors"
        lost.unlink()
        assert f"{lost}: missing; remove {state} to begin the stage anew" in resumed(folder)
    else:
        tensors, header = load_tensors(state)
        save_tensors(state, tensors, {key: value for key, value in header.items() if key != "selection"})
        (folder / "run" / "results.json").unlink()
        said = resumed(folder)
        assert f"{state}: " in said
        assert f"{REMOVE} to begin the stage anew" in said
    state.unlink()
    assert resumed(folder) == ""
    whole = processes.uninterrupted()
    # A stage whose rows stand behind a later one's says so in its state; all else is the same.
    assert set(processes.differing(folder / "run", whole)) <= {"metrics.csv", f"ckpt/{state.name}"}
    rows = [tuple(row.values()) for row in processes.metrics(folder / "run")]
    assert sorted(rows) == sorted(tuple(row.values()) for row in processes.metrics(whole))


def cut(after: str) -> Callable[[str], str]:
    """Cut a text behind the first of these words."""
    return lambda text: text[: text.index(after) + len(after)]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda text: "", "pretrain 1 to 2, prune 0 to 3, finetune 1 to 2"),
        (cut("\nprune,1"), "prune 1 to 3, finetune 1 to 2"),
        (cut("\nfinetune,2,,train_loss"), "finetune 2 to 2"),
        (lambda text: "".join(line for line in text.splitlines(True) if "prune,2" not in line), "prune 2 to 2"),
    ],
    ids=["all of it", "half", "the end", "an epoch"],
)
def test_rows_that_no_resume_makes_again_are_missed(damage: Callable[[str], str], lost: str, folder: Path) -> None:
    file = folder / "run" / "metrics.csv"
    before = file.read_text()
    file.write_text(damage(before))
    (folder / "run" / "results.json").unlink()
    held = processes.contents(folder / "run")
    assert f"{file}: missing or too short, lost are the epochs {lost}; bring it back" in resumed(folder)
    assert processes.contents(folder / "run") == held
    file.write_text(before)
    assert resumed(folder) == ""
    assert processes.differing(folder / "run", processes.uninterrupted()) == []
