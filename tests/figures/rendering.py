"""Renders runs from the command line, reads what was written, and changes runs."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from click.testing import CliRunner
from scipy.stats import binomtest

from figures.__main__ import command

IDS = [f"table{n}" for n in range(1, 14)] + [f"fig{n}" for n in range(1, 18)]
HYDRA = {"network": "resnet18", "method": "hydra", "sparsity": "90"}


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def render(runs, out, *only, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = invoke("--runs", runs, "--out", out, "--only", *only, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def clone(run, name, **replaced):
    """A copy of a run whose config has other values: ``name="svhn"`` is written as ``name_of_old=new``."""
    copy = Path(shutil.copytree(run, run.parent / name))
    config = (copy / "config.toml").read_text()
    for old, new in replaced.values():
        assert config.count(old) == 1, (old, config.count(old))
        config = config.replace(old, new)
    (copy / "config.toml").write_text(config)
    return copy


def cells(file, **wanted):
    """The rows of a CSV with these values; empty fields are empty strings."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def one(file, **wanted):
    (row,) = cells(file, **wanted)
    return row


def correct(runs, method, arm, seed, stage, kind):
    with np.load(runs / f"{method}-{arm}-{seed}" / "evals" / f"{stage}.npz") as arrays:
        return arrays[kind]


def on(runs, name, source="hydra-orig-0", **more):
    return clone(runs / source, name, data=('name = "cifar10"', f"name = {json.dumps(name)}"), **more)


def wilson(correct):
    """95 % Wilson interval in percent, by scipy."""
    found = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return 100 * found.low, 100 * found.high


def run_of(seed, fold=-1):
    """What a table's row knows of a run: its seed and fold."""
    options = {} if fold < 0 else {"fold": fold}
    return SimpleNamespace(path=str(seed), config=SimpleNamespace(seed=seed, data=SimpleNamespace(options=options)))
