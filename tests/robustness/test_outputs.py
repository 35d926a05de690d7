"""What a command writes takes the place of a file of its own or of none, and is checked before anything is measured."""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from bad_world import Attempt
from contract import snapshot

from s2ap_core.data import InMemory
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import COMMANDS, main
from s2ap_diag.commands.options.shared import OutputFile
from s2ap_diag.execution.run_log import run_log
from s2ap_diag.output import destinations


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    """Two masks of another tool, in a folder of theirs."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        np.savez(folder / f"mask-{number}.npz", weight=np.arange(6) % (number + 2) == 0)
    return sorted(folder.iterdir())


def make_link(path: Path) -> None:
    (path.parent / "precious").write_text("mine")
    path.symlink_to(path.parent / "precious")


PLACES = {
    "a symbolic link": make_link,
    "a symbolic link, ": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("option", ["--csv", "--json", "--plot"])
@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_file_is_not_replaced(attempt: Attempt, masks: list[Path], tmp_path: Path, what: str, option: str):
    out = tmp_path / "out" / "out.png"
    out.parent.mkdir()
    PLACES[what](out)
    outcome = attempt("output / hamming", ["hamming", *masks, option, out, "--quiet"], untouched=tmp_path)
    assert outcome.status == 2
    assert outcome.stderr.startswith(f"error: {option} {out}: {what.removesuffix(', ')}")


def test_a_device_stays_one(attempt: Attempt, masks: list[Path], tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        null = Path(os.devnull)  # which only root could replace
    assert attempt("output / hamming", ["hamming", *masks, "--csv", null, "--quiet"]).status == 0
    assert stat.S_ISCHR(null.lstat().st_mode)
    if null.parent == tmp_path:
        os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 255))
        refused = attempt("output / hamming", ["hamming", *masks, "--csv", tmp_path / "disk", "--quiet"])
        assert f"--csv {tmp_path / 'disk'}: a disk" in refused.stderr


def test_a_pipe_that_a_shell_reads_is_written_into(attempt: Attempt, masks: list[Path], tmp_path: Path) -> None:
    read, write = os.pipe()
    found: list[bytes] = []

    def drain() -> None:
        with open(read, "rb") as pipe:
            found.append(pipe.read())

    reader = threading.Thread(target=drain)
    reader.start()
    assert attempt("output / hamming", ["hamming", *masks, "--csv", f"/dev/fd/{write}", "--quiet"]).status == 0
    os.close(write)
    reader.join()
    assert attempt("output / hamming", ["hamming", *masks, "--csv", tmp_path / "csv", "--quiet"]).status == 0
    assert found == [(tmp_path / "csv").read_bytes()]


@pytest.mark.parametrize("link", [False, True], ids=["itself", "by another way"])
def test_an_input_is_no_output(attempt: Attempt, masks: list[Path], tmp_path: Path, link: bool) -> None:
    named = masks[1]
    if link:
        (tmp_path / "way").symlink_to(masks[1].parent)
        named = tmp_path / "way" / masks[1].name
    for inputs in (masks, [masks[0].parent]):
        outcome = attempt("output / hamming", ["hamming", *inputs, "--json", named, "--quiet"], untouched=tmp_path)
        assert f"--json {named}: it is read by this command" in outcome.stderr


def test_two_outputs_are_two_files(attempt: Attempt, masks: list[Path], tmp_path: Path) -> None:
    call = ["hamming", *masks, "--csv", tmp_path / "out", "--json", tmp_path / "in" / ".." / "out", "--quiet"]
    assert ": --json writes it" in attempt("output / hamming", call, untouched=tmp_path).stderr


@pytest.mark.usefixtures("tiny_network")
def test_no_file_of_a_run_is_an_output(tmp_path: Path, new_run: Callable[..., RunDirectory], data: InMemory) -> None:
    begun = new_run(tmp_path / "run")
    with run_log(begun.path):
        Stages(begun, data).all()
    run = begun.path
    before = snapshot(tmp_path)
    for file in (path for path in run.rglob("*") if path.is_file()):
        with pytest.raises(InputError, match=f"--json {file}: it is a file of the run there"):
            destinations.check_destinations({"--json": file}, [])
    destinations.check_destinations({"--json": run / "sharpness.json", "--plot": run / "ckpt" / "curve.png"}, [run])
    assert snapshot(tmp_path) == before


def outputs() -> Iterator[tuple[list[str], OutputFile]]:
    """Every option of every command that names a file to write, after the command's words."""

    def of(words: list[str], command: click.Command) -> Iterator[tuple[list[str], OutputFile]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from of([*words, name], found)
            return
        given = ["missing" for parameter in command.params if isinstance(parameter, click.Argument)]
        for parameter in command.params:
            if isinstance(parameter.type, OutputFile):
                yield [*words, *given, parameter.opts[0]], parameter.type

    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        yield from of([name], command)


OUTPUTS = {" ".join(word for word in words if word != "missing"): (words, kind) for words, kind in outputs()}


def test_the_outputs_are_known() -> None:
    named = ("export --out", "report --out", "sharpness --spectrum", "data check --csv", "compare --plot")
    assert {*named} <= OUTPUTS.keys()


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_checked_before_the_command_looks_at_anything(
    name: str, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, kind = OUTPUTS[name]
    (tmp_path / "file.png").write_text("mine")
    bad: dict[str, Any] = {tmp_path: "a folder", tmp_path / "file.png" / "out.png": "is no folder"}
    if kind.picture:
        bad = {tmp_path / "out.txt": "end the name in .png, .pdf or .svg"} | {
            tmp_path / "file.png" / "out.png": "is no folder"
        }
    monkeypatch.chdir(tmp_path)
    required = ["--out", "small.safetensors"] if words[0] == "export" and words[-1] != "--out" else []
    required += ["--root", "data"] if words[0] == "data" else []
    for out, said in bad.items():
        outcome = attempt(f"output / {words[0]}", [*words, out, *required], untouched=tmp_path)
        assert outcome.status == 2
        assert f"{words[-1]} {out}: " in outcome.stderr
        assert said in outcome.stderr


def test_a_full_disk_and_a_name_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--json .*: cannot be written .File name too long.; name another file"):
        destinations.check_destinations({"--json": tmp_path / ("x" * 300)}, [])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(InputError, match=r"--json .*out: the disk is full"):
        destinations.check_destinations({"--json": tmp_path / "new" / "out"}, [])


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(InputError, match="cannot be written"):
        write_file(Path(f"/dev/fd/{write}"), "text")
    os.close(write)
