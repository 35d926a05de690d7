"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from s2ap_core.presets.compose import presets
from s2ap_diag.commands import COMMANDS, main

TEXTS = {path.name: path.read_text() for path in (Path("README.md"), *sorted(Path("docs").glob("*.md")))}
SHOWN = {name: re.findall(r"s2ap-diag ([a-z]+)((?: +[^\s#`]+)*)", text) for name, text in TEXTS.items()}


def test_the_library_example_runs_and_prints_three_numbers(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    body = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(body) < 10
    exec(code, {})
    numbers = [float(line) for line in capsys.readouterr().out.split()]
    assert len(numbers) == 3
    sharpest, difference, distance = numbers
    assert sharpest > 0
    assert difference >= 0
    assert 0 < distance < 0.5  # two networks with 10 % kept differ in at most 20 % of the entries


@pytest.mark.parametrize("name", [name for name, shown in SHOWN.items() if shown])
def test_every_command_and_option_that_is_shown_exists(name):
    for command, arguments in SHOWN[name]:
        assert command in COMMANDS
        known = CliRunner().invoke(main, [command, "--help"]).output
        if command == "data":
            known = CliRunner().invoke(main, [command, "fetch", "--help"]).output
        for option in re.findall(r"--[a-z-]+", arguments):
            assert re.search(rf"{option}\b", known), (command, option)


def test_the_preset_that_is_shown_exists():
    named = re.findall(r"s2ap-diag run ([a-z][\w-]+)", TEXTS["README.md"])
    assert named
    assert set(named) <= presets().keys()
