"""Help, completion and suggestions: what a user who does not know the words yet gets."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from s2ap_core.config import Config, setting_names, setting_values
from s2ap_core.presets.compose import presets
from s2ap_core.presets.read import read_run
from s2ap_diag.commands import COMMANDS, main
from s2ap_diag.sweep.grid import Combinations, Grid, expand

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("data", "fetch")])
def test_h_is_help_everywhere(command):
    status, short = run(*command, "-h")
    assert (status, short) == run(*command, "--help")
    assert status == 0
    assert short.startswith("Usage: ")


@pytest.mark.parametrize("group", [(), ("data",)])
def test_a_bare_group_is_its_help(group):
    assert run(*group) == run(*group, "--help")


def test_a_command_that_there_is_not_names_the_one_that_was_meant():
    status, said = run("shapness")
    assert (status, "did you mean sharpness?" in said) == (2, True)
    status, said = run("xyzzy")
    assert (status, "choose from demo, run," in said) == (2, True)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("method.kep", "did you mean method.keep"),
        ("prunee.epochs", "did you mean prune?"),
        ("keep", "did you mean method.keep?"),
        ("minimizer.xyzzy", "minimizer has name, gamma,"),
        ("xyzzy", "there are title, seed, data,"),
    ],
)
def test_a_setting_that_there_is_not_names_the_one_that_was_meant(key, said):
    status, output = run("run", "digits", "--set", f"{key}=3")
    assert (status, output.count("\n")) == (2, 1)
    assert f"no such setting; {said}" in output


# --- completion ---


def complete(*words: str) -> list[str]:
    """What a shell is offered for the last word, by click's own protocol, as it gives the words."""
    environment = {
        "_S2AP_DIAG_COMPLETE": "zsh_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(main, [], prog_name="s2ap-diag", env=environment)
    lines = done.output.splitlines()
    return lines[1::3]  # type, value, help


def test_presets_grids_and_settings_are_completed():
    ninety = [name for name in presets() if name.startswith("cifar10-resnet18-harp-s2ap-9")]
    assert complete("s2ap-diag", "run", "cifar10-resnet18-harp-s2ap-9") == ninety
    assert {"table1", "table12"} <= set(complete("s2ap-diag", "sweep", "table1"))
    assert complete("s2ap-diag", "estimate", "galler") == ["gallery", "gallery-full"]
    assert complete("s2ap-diag", "run", "digits", "--set", "method.pen") == ["method.penalty="]
    assert complete("s2ap-diag", "run", "digits", "--set", "minimizer.name=s") == ["minimizer.name=s2ap"]
    assert complete("s2ap-diag", "shar") == ["sharpness"]


def test_every_setting_can_be_named_and_words_are_accepted():
    names = setting_names()
    assert {"seed", "method.keep", "tracking.tensorboard"} <= set(names)
    assert len(names) == len(set(names))
    for name in names:
        section, _, field = name.rpartition(".")
        assert hasattr(getattr(Config(), section) if section else Config(), field), name
    assert setting_values("minimizer.name") == ["none", "s2ap", "awp"]
    assert setting_values("prune.freeze_norm") == ["false", "true"]
    assert setting_values("method.keep") == setting_values("no.such") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_line_that_help_names_makes_bash_complete(tmp_path):
    line = re.search(r"`(eval [^`]*)`", " ".join(run("--help")[1].split()))
    program = tmp_path / "s2ap-diag"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "cli.py"} "$@"\n')
    program.chmod(0o755)
    script = f"{line[1]}\nCOMP_WORDS=(s2ap-diag run cifar10-resnet18-harp-s2ap-9); COMP_CWORD=2\n"
    script += '_s2ap_diag_completion s2ap-diag; echo "${COMPREPLY[@]}"\n'
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert "cifar10-resnet18-harp-s2ap-90" in done.stdout.split(), done.stderr


# --- titles ---


def test_a_title_follows_its_settings():
    preset = "cifar10-resnet18-harp-s2ap-90"
    plain = read_run(preset, None, ())
    assert plain.title == "HARP, S2AP: ResNet-18 on CIFAR-10, 90 % sparsity (Tables 1, 5, 11, 12)"
    shared = "HARP, S2AP: ResNet-18 on CIFAR-10, 90 % sparsity"
    changed = read_run(preset, None, ("method.keep=0.05", "minimizer.gamma=0.01", "seed=3", "data.root=/data"))
    assert changed.title == f"{shared}, but method.keep = 0.05, minimizer.gamma = 0.01"
    same = read_run(preset, None, ("method.keep=0.1", "tracking.every=1"))
    assert same.title == plain.title
    assert read_run(preset, None, ("method.name=hydra", "title='mine'")).title == "mine"
    small = read_run(preset, "digits", ("method.name=hydra",))
    assert small.title == f"{shared}; scaled: 8 wide, on digits, but method.name = hydra"


def test_a_grids_runs_have_titles_of_their_own():
    group = Combinations(presets=["cifar10-resnet18-harp-s2ap-90"], values={"method.keep": [0.1, 0.2]}, sharpness=False)
    first, second = (planned.config.title for planned in expand(Grid(group=[group])))
    assert first.endswith("(Tables 1, 5, 11, 12)")
    assert second.endswith("90 % sparsity, but method.keep = 0.2")


# --- remedies ---


def texts(file: Path) -> Iterator[str]:
    """The strings of a file that are not docstrings."""
    tree = ast.parse(file.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for child in command.commands.values() if isinstance(command, click.Group) and command.name == "data" else ():
        yield from options(child)


def test_every_option_that_a_message_names_can_be_typed():
    known = {"--help", "--version"}
    for name in COMMANDS:
        known |= set(options(main.get_command(click.Context(main), name)))
    elsewhere = {
        "--only",
        "--nnodes",
        "--nproc-per-node",
        "--max-restarts",
        "--error-unmatch",
    }  # benchmarks, torchrun, git
    named = {
        (option, file.name)
        for package in ("s2ap_core", "s2ap_diag")
        for file in (ROOT / package).rglob("*.py")
        for text in texts(file)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    }
    assert {(option, file) for option, file in named if option not in known | elsewhere} == set()
