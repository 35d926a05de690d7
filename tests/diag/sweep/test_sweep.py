"""Sweeps: what is run, once, by whichever executor, whatever fails or is killed."""

import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import fsspec
import psutil
import pytest
from click.testing import CliRunner
from torch import Tensor, nn

from s2ap_core.config import ObjectiveSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach
from s2ap_core.presets.read import read_run
from s2ap_core.runs.course import digest
from s2ap_core.training.objectives import build_objective
from s2ap_diag.commands import main
from s2ap_diag.curvature.loss_difference import loss_difference
from s2ap_diag.curvature.tracking import batch_loss
from s2ap_diag.sweep.estimate import passes, seconds, size_of, wall, work, works
from s2ap_diag.sweep.grid import Combinations, Grid, expand, grids, read_grid
from s2ap_diag.sweep.plan import plan
from s2ap_diag.sweep.rates import rates_of
from s2ap_diag.sweep.schedule import Schedule, read_status
from s2ap_diag.sweep.tasks import Outcome, Workplace, is_done, run_task

GRID = """
scale = "digits"
[set]
"network.width" = 4
"pretrain.epochs" = 1
"prune.epochs" = 2
"minimizer.warmup" = 1
"finetune.epochs" = 1
"objective.steps" = 1
"evaluation.attack" = "none"
"evaluation.stages" = ["finetune"]
"tracking.every" = 0
[[group]]
presets = ["svhn-resnet18-hydra-orig-90", "svhn-resnet18-hydra-s2ap-90"]
values = { seed = [0, 1] }
sharpness = false
"""
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As in this process: another number of threads gives other last bits."""

BROKEN = '[[group]]\npresets = ["svhn-resnet18-hydra-s2ap-90"]\nset = { "pretrain.lr" = 1e30 }\nsharpness = false\n'


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "grid.toml"
    file.write_text(GRID)
    return file


def sweep(grid: Path, runs: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "s2ap_diag", "sweep", str(grid), "--runs", str(runs), *options]


def results(runs: Path) -> dict[str, bytes]:
    """What the runs found, by run: everything but times and machines."""
    kept = ("*.safetensors", "metrics.csv", "results.json", "config.toml", "*.npz")
    files = [file for pattern in kept for file in runs.glob(f"*/**/{pattern}") if "shared" not in file.parts]
    return {file.relative_to(runs).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run of the grid by itself, through `run`: what a sweep must find too."""
    folder = tmp_path_factory.mktemp("alone")
    file = folder / "grid.toml"
    file.write_text(GRID)
    for planned in expand(read_grid(str(file))):
        config = folder / f"{planned.name}.toml"
        config.write_text(planned.config.to_toml())
        out = folder / "runs" / planned.name
        found = CliRunner().invoke(main, ["run", str(config), "--out", str(out), "--quiet"])
        assert found.exit_code == 0, found.output
    return folder / "runs"


# --- what is run ---


def test_what_is_zipped_goes_in_step_and_meets_each_combination_of_the_values():
    group = Combinations(
        presets=["digits"],
        values={"method.keep": [0.3, 0.25]},
        zip={"seed": [4, 5], "data.options.fold": [2, 0]},
        set={"data.options.fold": 1},
    )
    runs = [planned.config for planned in expand(Grid(group=[group]))]
    found = [(c.method.keep, c.seed, c.data.options["fold"]) for c in runs]
    assert found == [(0.3, 4, 2), (0.3, 5, 0), (0.25, 4, 2), (0.25, 5, 0)]
    assert "fold2" in expand(Grid(group=[group]))[0].name


def test_the_galleries_test_each_seed_on_the_fold_of_its_number():
    seeds_of = {"gallery": 5, "gallery-full": 3, "claims": 5, "dose": 5, "threats": 3, "radius": 3, "groupnorm": 3}
    for name, seeds in seeds_of.items():
        runs = [planned.config for planned in expand(read_grid(name))]
        assert {c.data.options["fold"] - c.seed for c in runs} == {0}
        assert {c.evaluation.n for c in runs} == {None}
        assert {c.seed for c in runs} == set(range(seeds))


def test_a_grid_is_each_preset_with_each_combination_of_values():
    group = Combinations(
        presets=["cifar10-resnet18-hydra-orig-9?"],
        set={"prune.epochs": 7, "evaluation.stages": ["prune"]},
        values={"method.keep": [0.3, 0.25], "seed": [4, 5, 6]},
    )
    runs = expand(Grid(group=[group]))
    # Three presets (90, 95, 99) differ in keep alone, which is overridden: each setting is run once.
    assert {(r.config.method.keep, r.config.seed) for r in runs} == {(k, s) for k in (0.3, 0.25) for s in (4, 5, 6)}
    assert len(runs) == 6
    assert all(r.config.prune.epochs == 7 and r.config.evaluation.stages == ["prune"] for r in runs)
    assert len({r.name for r in runs}) == 6


def test_runs_that_differ_in_their_seed_are_those_that_are_read_one_by_one():
    # A seed's and a combination's first run is read whole, the others are copies: 1.0 is a seed, and there it is 1.
    values = {"method.keep": [0.1, 0.05], "minimizer.gamma": [0.01], "seed": [0, 1.0, 2]}
    group = Combinations(presets=["svhn-resnet18-hydra-*-90"], scale="digits", values=values)
    planned = expand(Grid(group=[group]))
    assert len(planned) > 6
    preset = "svhn-resnet18-hydra-s2ap-90"
    for keep in values["method.keep"]:
        for seed in range(3):
            overrides = (f"method.keep={keep}", "minimizer.gamma=0.01", f"seed={seed}")
            alone = read_run(preset, "digits", overrides)
            (run,) = [run for run in planned if run.name.startswith(preset) and run.name.endswith(digest(alone))]
            assert run.config == alone
            assert isinstance(run.config.seed, int)


def test_a_dry_run_counts_all_tasks_and_lists_the_first_five_hundred(tmp_path):
    grid = tmp_path / "grid.toml"
    seeds = f"values = {{ seed = {list(range(501))} }}"
    grid.write_text(f'scale = "digits"\n[[group]]\npresets = ["svhn-resnet18-hydra-orig-90"]\n{seeds}\n')
    found = CliRunner().invoke(main, ["sweep", str(grid), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert found.stdout.startswith("501 tasks, 501 to do; the first 500\n")
    assert found.stdout.count(" waiting ") == 500


def test_every_table_is_a_grid_of_its_presets():
    assert {f"table{n}" for n in range(1, 13)} - {"table7"} | {"all"} <= grids().keys()
    assert len(expand(read_grid("table1"))) == 3 * 2 * 2 * 4 * 3  # networks, methods, arms, sparsities, seeds
    assert len(expand(read_grid("table5"))) == 2 * 3 * 2 * 2 * 4 * 3
    # Tables 5 and 11 are of the runs of Tables 1 and 2; Table 12 shares half of its runs with Table 1.
    tables = 3 * (48 + 48 + 6 + 16 + 7 + 48 + 8 + 32 + 8 + 8)
    assert len(expand(read_grid("all"))) == tables + 3 * 3 * 5  # Figure 5: networks, seeds, gammas but the own one
    small = expand(read_grid("table1"), scale="digits", overrides=("prune.epochs=3",))
    assert {(r.config.data.name, r.config.prune.epochs) for r in small} == {("digits", 3)}


def test_a_changed_config_is_a_different_run(grid):
    names = [{r.name for r in expand(read_grid(str(grid)), overrides=change)} for change in ((), ("prune.lr=0.2",))]
    assert not names[0] & names[1]


def test_names_lead_nowhere_else():
    group = Combinations(presets=["digits"], values={"title": ["../../x", "<script>", "a\nb", "y" * 300]})
    planned = expand(Grid(group=[group]))
    assert len(planned) == 1  # a title makes no difference to what is run
    assert all(set(p.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._") for p in planned)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[group]]\npresets = ['nothing']", "presets = nothing: no such preset or file"),
        ("[[group]]\nvalues = {}", r"group.0.presets: Field required"),
        (
            "[[group]]\npresets = ['digits']\nzip = { seed = [1, 2], 'method.keep' = [0.1] }",
            r"the lists of zip go in step: give them one length",
        ),
        (
            "[[group]]\npresets = ['digits']\nzip = { seed = [1] }\nvalues = { seed = [1, 2] }",
            r"seed is in zip and in values: leave it out of one",
        ),
        ("group = 3", "group: "),
        ("[[group", "not valid TOML"),
        (
            "[[group]]\npresets = ['digits']\nvalues = { 'method.keep' = [2.0] }",
            "method.keep: .* less than or equal to 1",
        ),
    ],
)
def test_a_grid_that_cannot_be_used_is_refused_in_one_line(text, message, tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text(text)
    found = CliRunner().invoke(main, ["sweep", str(file), "--runs", str(tmp_path / "runs")])
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 1
    with pytest.raises(InputError, match=message):
        expand(read_grid(str(file)))
    assert not (tmp_path / "runs").exists()


def test_what_runs_begin_with_is_a_task_of_its_own_that_they_wait_for(grid):
    tasks = plan(expand(read_grid(str(grid))))
    place = {task.name: index for index, task in enumerate(tasks)}
    assert all(place[task.after] < place[task.name] for task in tasks if task.after)
    parts = [(task.until, task.config.seed) for task in tasks]
    # The warm-up is all that both arms of a seed share; a dense network that nothing else needs is part of it.
    assert sorted(parts) == [("end", 0)] * 2 + [("end", 1)] * 2 + [("warmup", 0), ("warmup", 1)]
    both = plan(expand(read_grid(str(grid)), overrides=("seed=0",)) + expand(read_grid("table8"), scale="digits"))
    assert all(task.after is None or digest(task.config, task.shared) in task.after for task in both)


class Noting(Executor):
    """Ends each task at once, and notes which it was."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def submit(self, fn, /, *args, **kwargs):
        self.names.append(args[0].name)
        future: Future[Outcome] = Future()
        future.set_result(Outcome(args[0].name, 1.0, None))
        return future


def test_what_others_go_on_from_comes_first(grid, tmp_path):
    """Else the last beginning is made while all other workers have nothing left to do."""
    noting = Noting()
    tasks = plan(expand(read_grid(str(grid))))
    Schedule(tasks, Workplace(str(tmp_path / "runs")), workers=1).run(noting)
    assert [name.startswith("shared/") for name in noting.names] == [True, True, False, False, False, False]
    assert sorted(noting.names) == sorted(task.name for task in tasks)


# --- what a sweep costs ---


def test_passes_are_counted_as_an_epoch_makes_them():
    (planned,) = expand(
        Grid(group=[Combinations(presets=["svhn-resnet18-hydra-s2ap-90"], scale="digits", sharpness=False)])
    )
    (task,) = plan([planned])
    train, val, per_step = 1197, 200, 5 + 2
    pretrain, finetune = 8 * (train + val) * per_step, 5 * (train * (per_step + 2) + val * per_step)
    search = val * per_step + 9 * (train + val) * per_step + (9 - 2) * train * 2  # the first mask is validated, too
    # One of an epoch's ten iterations is read, two spectra in two modes of BatchNorm: T = 10 products and a quotient's,
    # each forward and backward twice, of clean and adversarial images.
    search += 9 * 2 * 2 * 11 * 32 * 2 * 2
    attacked = 2 * 400 * (100 + 900 / 2)  # APGD on the whole test split, its targeted attack on the robust half
    assert passes(task) == pytest.approx(pretrain + search + finetune + attacked)
    # The published counts: 0.56 G multiply-accumulates for ResNet-18 on 32x32, 11.17 M parameters.
    assert size_of("resnet18", None, "cifar10").macs == pytest.approx(0.556e9, rel=0.01)
    assert size_of("resnet18", None, "cifar10").parameters == 11_173_962


@pytest.mark.parametrize(
    ("tracking", "readings"),
    [
        ({}, 2 * 2),
        ({"tracking.spectrum": ["live"]}, 2),
        ({"tracking.spectrum": ["all"], "tracking.batch_norm": ["batch"]}, 1),
    ],
)
def test_tracking_costs_a_reading_for_each_spectrum_in_each_mode_of_batch_norm(tracking, readings):
    def cost(settings: dict[str, object]) -> tuple[float, int]:
        group = Combinations(presets=["svhn-resnet18-hydra-s2ap-90"], scale="digits", sharpness=False, set=settings)
        (task,) = plan(expand(Grid(group=[group])))
        return passes(task), task.config.prune.batch_size

    (without, batch), (found, _) = (
        cost(settings)
        for settings in (
            {"tracking.every": 0},
            {"tracking.every": 1, "tracking.iterations": 7, "tracking.images": 20, **tracking},
        )
    )
    # Seven products and the quotient's, each two passes of each of the two losses, on twenty images; nine epochs.
    assert found - without == pytest.approx(9 * math.ceil(1197 / batch) * readings * (7 + 1) * 4 * 20)


def test_the_work_of_runs_that_share_their_settings_is_each_ones_own():
    values = {"seed": [0, 1], "prune.epochs": [3, 4]}
    group = Combinations(presets=["svhn-resnet18-hydra-*-90"], scale="digits", values=values)
    tasks = plan(expand(Grid(group=[group])))
    found = works(tasks)
    assert found == [work(task) for task in tasks]
    assert len(set(found)) >= 5  # of two beginnings, two arms, two lengths


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_loss_difference_costs_the_passes_that_the_network_then_sees(restarts, narrow, batch):
    """Within a tenth: the count leaves out the loss at v = 0."""

    def counted(rho: list[float]) -> float:
        measured = {"images": 8, "rho": rho, "steps": 20, "restarts": restarts}
        group = Combinations(presets=["svhn-resnet18-hydra-orig-90"], scale="digits", sharpness=measured)
        (task,) = plan(expand(Grid(group=[group])))
        return passes(task)

    model = attach(narrow("resnet18"), keep=0.1)
    seen = 0

    def count(_module: nn.Module, _given: object, made: Tensor) -> None:
        nonlocal seen
        seen += len(made) * made.requires_grad

    model.conv1.register_forward_hook(count)
    images, labels = batch
    loss = batch_loss(build_objective(ObjectiveSettings()))
    loss_difference(model, loss, [(images, images.flip(0), labels)], rho=0.01, restarts=restarts)
    assert counted([0.01]) - counted([]) == pytest.approx(seen, rel=0.1)


def test_a_search_of_table_7_takes_the_hours_that_table_7_says():
    (planned,) = expand(Grid(group=[Combinations(presets=["cifar10-resnet18-hydra-orig-90"], sharpness=False)]))
    (task,) = plan([planned])
    per_mac = rates_of("a6000", None, []).of("resnet18")
    per_pass = 3 * size_of("resnet18", None, "cifar10").macs * per_mac
    assert per_pass * 20 * 50_000 * 12 / 3600 == pytest.approx(3.27)
    assert seconds(task, per_mac) == pytest.approx(work(task) * per_mac)


def test_the_wall_time_is_that_of_a_schedule_made_by_hand(grid):
    tasks = plan(expand(read_grid(str(grid))))
    cost = {task.name: {"warmup": 2.0, "end": 3.0}[task.until] for task in tasks}
    # Per seed a warm-up of 2, then two runs of 3. One device: 16; two: a seed each, 8; four: 2 + 3.
    assert [wall(tasks, cost, n) for n in (1, 2, 4, 64)] == [16.0, 8.0, 5.0, 5.0]


# --- running ---


def test_a_sweep_finds_what_its_runs_find_alone_and_then_has_nothing_to_do(grid, alone, tmp_path):
    runs = tmp_path / "runs"
    grid.write_text(GRID + BROKEN)  # its loss is not finite in the first epoch
    first = subprocess.run(sweep(grid, runs, "--workers", "2"), capture_output=True, text=True, check=False, env=ENV)
    assert first.returncode == 1
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("failed: ")]
    assert "lower pretrain.lr" in line
    log = runs / line.rpartition("/logs/")[2].removesuffix(")")
    assert "lower pretrain.lr" in (runs / "logs" / log.name).read_text()
    ours, theirs = results(runs), results(alone)
    assert theirs.keys() <= ours.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    times = {file: file.stat().st_mtime_ns for file in runs.rglob("*.safetensors")}
    again = subprocess.run(sweep(grid, runs, "--workers", "1"), capture_output=True, text=True, check=False, env=ENV)
    assert again.returncode == 1
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*.safetensors")} == times
    states = [task.state for task in read_status(str(runs)).tasks]
    assert states.count("failed") == 1
    assert states.count("done") == len(states) - 1
    shown = CliRunner().invoke(main, ["sweep", "--status", "--runs", str(runs)])
    assert "6 done, 0 running, 0 waiting, 1 failed" in " ".join(shown.output.split())


def test_killed_workers_and_a_killed_sweep_lose_nothing(grid, alone, tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(sweep(grid, runs, "--workers", "2"), stdout=subprocess.DEVNULL, env=ENV)
    wait_for(lambda: list(runs.glob("shared/*/ckpt/*.safetensors")))
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()  # the pool breaks, a new one goes on
    wait_for(lambda: list(runs.glob("svhn*/metrics.csv")))
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        subprocess.run(sweep(grid, runs, "--workers", "1"), capture_output=True, check=False, env=ENV).returncode == 0
    )
    ours, theirs = results(runs), results(alone)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_a_sweep_that_is_interrupted_leaves_no_workers_and_says_how_to_go_on(grid, tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(sweep(grid, runs, "--workers", "2"), stderr=subprocess.PIPE, text=True, env=ENV)
    wait_for(lambda: list(runs.glob("shared/*/ckpt/*.safetensors")))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; what is done is kept, go on with: the same command"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_the_runs_may_lie_behind_a_url(grid, alone, tmp_path):
    """Tasks work in a folder of their own machine, and bring back what they made there."""
    url = "memory://far/runs"
    tasks = [task for task in plan(expand(read_grid(str(grid)))) if task.config.seed == 0]
    for task in tasks:
        assert not is_done(task, url)
        assert run_task(task, Workplace(url)).error is None
        assert is_done(task, url)
    fsspec.filesystem("memory").get("/far/runs/", f"{tmp_path / 'here'}/", recursive=True)
    ours, theirs = results(tmp_path / "here"), results(alone)
    assert ours.keys() == {name for name in theirs if "-s0-" in name}
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert list((tmp_path / "here" / "logs").glob("*.log"))


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
