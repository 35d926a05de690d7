"""Which entries of the catalogue a grid's runs would fill, found from the runs' configs alone."""

import pytest

from figures.catalogue import Entry, load_catalogue
from figures.matching import Library
from s2ap_diag.reading.results import SHARPNESS, Run
from s2ap_diag.sweep.grid import SEEDS, expand, read_grid

GAMMAS = {0.00075, 0.001, 0.0025, 0.005, 0.0075, 0.01}
"""App. A.3, which lists 0.001 twice; the last one must be 0.01."""

CORRUPTED = "table11"
"""CIFAR-10-C is not part of a run: `s2ap-diag evaluate RUNS --dataset cifar10c` evaluates it afterwards."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """``library(grid)``: the runs of a grid as if each had ended."""
    made = {}

    def planned(grid):
        folder = tmp_path_factory.mktemp(grid)
        for run in expand(read_grid(grid)):
            path, stages = folder / run.name, run.config.evaluation.stages
            path.mkdir()
            searched = stages != ["pretrain"]
            if searched and run.sharpness is not None:
                (path / SHARPNESS).touch()
            results = {f"evaluate-{stage}": {} for stage in stages} | ({"prune": {}} if searched else {})
            yield Run(path, run.config, results, {})

    def make(grid):
        if grid not in made:
            made[grid] = Library(list(planned(grid)))
        return made[grid]

    return make


def seeds_of(entry: Entry, library: Library):
    """For each setting and arm, and each gamma where they are drawn, how many seeds hold all that is read."""
    for cell in entry.cells:
        for arm in entry.arms:
            if entry.kind == "gamma":
                found = library.find_gammas(cell, arm, f"evaluate-{entry.stage}")
                yield from (len(found.get(gamma, {})) for gamma in sorted(GAMMAS | found.keys()))
            else:
                yield len(set.intersection(*(set(library.find(cell, arm, need)) for need in entry.needs)))


@pytest.mark.parametrize("entry", load_catalogue(), ids=lambda entry: entry.id)
@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_the_paper_s_grid_fills_every_table_and_figure(library, entry, batch_norm):
    runs = library("all")
    runs.batch_norm = batch_norm
    expected = 0 if entry.id == CORRUPTED else SEEDS
    assert set(seeds_of(entry, runs)) == {expected}
    assert not runs.left_out
    assert not runs.conflicts


@pytest.mark.parametrize(("grid", "empty"), [("gallery", {CORRUPTED}), ("gallery-full", {CORRUPTED})])
def test_what_a_gallery_leaves_empty_is_known(library, grid, empty):
    """A narrow network of a few seeds leaves cells empty; whole entries, these alone."""
    found = {entry.id: list(seeds_of(entry, library(grid))) for entry in load_catalogue("digits")}
    assert {name for name, seeds in found.items() if not any(seeds)} == empty


def test_the_full_gallery_fills_every_cell(library):
    for entry in load_catalogue("digits"):
        if entry.id != CORRUPTED:
            assert set(seeds_of(entry, library("gallery-full"))) == {SEEDS}, entry.id
