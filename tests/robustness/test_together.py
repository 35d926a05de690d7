"""Two commands at once on one target: names of their own for what is half written, and the last one wins whole."""

import json
import os
import shutil
from multiprocessing import get_context
from pathlib import Path

import processes
import pytest
from bad_world import World

from s2ap_core.files.atomic import leftovers, write_file

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_two_at_once(world: World, tmp_path: Path, command: str, fault_table) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    calls = {
        "evaluate": ["evaluate", str(run / "ckpt" / "prune-best.safetensors"), "--attack", "pgd-50", "--n", "6"],
        "report": ["report", str(run), "--out", str(tmp_path / "out")],
    }
    call = [*calls[command], "--quiet"]
    if command == "evaluate":
        call += ["--batch-size", "2", "--json", str(tmp_path / "out")]
    alone = processes.wait(processes.fork(call, tmp_path / "said"))
    assert alone == 0, (tmp_path / "said").read_text()
    expected = (tmp_path / "out").read_bytes()
    for _ in range(2):
        (tmp_path / "out").unlink()
        for file in (run / "evals").glob("prune-best*"):
            file.unlink()
        pids = [processes.fork(call, tmp_path / "said") for _ in range(2)]
        statuses = [processes.wait(pid) for pid in pids]
        assert statuses == [0, 0], (tmp_path / "said").read_text()
        assert (tmp_path / "out").read_bytes() == expected
        fault_table.add("two at once", survived=True)
    assert list(tmp_path.rglob("*.tmp")) == []


def write_many(path: Path, letter: str) -> None:
    for _ in range(200):
        write_file(path, json.dumps([letter] * 2000))


def test_of_several_writers_the_last_wins_whole(tmp_path: Path) -> None:
    context, path = get_context("fork"), tmp_path / "out"
    writers = [context.Process(target=write_many, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen <= {json.dumps([letter] * 2000) for letter in "abc"}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_another_process_is_writing_is_no_leftover(tmp_path: Path) -> None:
    names = {
        ".a.json.tmp": True,
        f".a.json.{os.getpid()}-0123abcd.tmp": True,  # of this process, which writes nothing now
        f".a.json.{os.getppid()}-0123abcd.tmp": False,
        ".a.json.99999999-0123abcd.tmp": True,
        "a.json.tmp": False,
        ".lock": False,
    }
    found = {path.name for path in leftovers(tmp_path / name for name in names)}
    assert found == {name for name, left in names.items() if left}
