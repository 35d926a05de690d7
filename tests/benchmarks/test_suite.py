"""The suite goes on where it stopped, on the same machine alone."""

import json
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import __main__ as suite
from benchmarks.command import python
from benchmarks.measure import Row


@pytest.fixture
def calls(monkeypatch):
    made = []

    def benchmark(name):
        return lambda setting: made.append(name) or [Row(f"{name} takes", 1.5, "x")]

    def broken(setting):
        made.append("second")
        raise KeyboardInterrupt

    names = {"first": benchmark("first"), "second": broken, "third": benchmark("third")}
    monkeypatch.setattr(suite, "BENCHMARKS", names)
    return made


def test_an_interrupted_suite_goes_on_after_the_last_benchmark_that_ended(calls, monkeypatch, tmp_path):
    file = tmp_path / "bench.json"
    asked = ["--json", str(file), "--resume"]
    assert CliRunner().invoke(suite.main, asked).exit_code != 0
    assert calls == ["first", "second"]
    monkeypatch.setitem(suite.BENCHMARKS, "second", lambda setting: [Row("mended", 2.0, "x")])
    result = CliRunner().invoke(suite.main, asked)
    assert result.exit_code == 0, result.output
    assert calls == ["first", "second", "third"]
    assert [row["benchmark"] for row in json.loads(file.read_text())["rows"]] == ["first", "second", "third"]
    CliRunner().invoke(suite.main, asked)  # has ended, and so begins anew
    assert calls == ["first", "second", "third", "first", "third"]


@pytest.mark.parametrize(
    "change", [{"quick": True}, {"machine": {"cores": 1000}}, {"machine": None}, {"rows": [{}]}, {"rows": None}]
)
def test_figures_of_another_machine_or_size_are_not_gone_on_with(calls, change, tmp_path):
    file = tmp_path / "bench.json"
    CliRunner().invoke(suite.main, ["--json", str(file)])
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    result = CliRunner().invoke(suite.main, ["--json", str(file), "--resume"])
    assert result.exit_code == 1
    assert "remove it, or name another file" in result.output
    assert calls == ["first", "second"]


def test_figures_of_other_code_are_not_gone_on_with(calls, monkeypatch, tmp_path):
    file = tmp_path / "bench.json"
    CliRunner().invoke(suite.main, ["--json", str(file)])
    monkeypatch.setattr(suite, "code", lambda: "other")
    result = CliRunner().invoke(suite.main, ["--json", str(file), "--resume"])
    assert "another machine, size or code" in result.output
    assert calls == ["first", "second"]


def test_a_commands_memory_is_its_own():
    """Linux counts to a command what the process that starts it holds."""
    held = np.ones(10**8)  # 800 MB
    ended = python("-c", "x = bytearray(200 * 2**20)")
    assert 200 < ended.memory < 300
    assert held.all()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python("-c", "raise SystemExit('no such thing')")
    assert failed.value.stderr == "no such thing"
