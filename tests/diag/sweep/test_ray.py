"""The same sweep on a Ray cluster of two nodes, one of which dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from s2ap_core.files import lock
from s2ap_diag.commands import main
from s2ap_diag.sweep.grid import expand, read_grid
from s2ap_diag.sweep.schedule import read_status
from tests.diag.sweep.test_sweep import GRID, results

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Two nodes of one core each on 127.0.0.1; their workers find this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # On one machine Ray would take 127.0.0.1 for the address that other machines know it by.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "4")
    found = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False},
    )
    found.second = found.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    yield found
    found.shutdown()


def test_a_node_that_dies_costs_no_run_and_changes_no_result(cluster, tmp_path):
    grid, runs = tmp_path / "grid.toml", tmp_path / "runs"
    grid.write_text(GRID)
    command = [sys.executable, "-m", "s2ap_diag", "sweep", str(grid), "--runs", str(runs), "--ray", cluster.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    # Both nodes are at a task of their own, in the middle of it.
    while len(list(runs.glob("shared/*/.lock"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no task began"
        time.sleep(0.05)
    cluster.remove_node(cluster.second, allow_graceful=False)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert {task.state for task in read_status(str(runs)).tasks} == {"done"}
    # What a local executor finds, with one thread for each of the two.
    found = CliRunner().invoke(
        main, ["sweep", str(grid), "--runs", str(tmp_path / "local"), "--workers", "2", "--quiet"]
    )
    assert found.exit_code == 0, found.output
    ours, theirs = results(runs), results(tmp_path / "local")
    assert len({Path(name).parts[0] for name in ours}) == len(expand(read_grid(str(grid))))
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_the_lock_of_a_dead_node_is_removed_and_that_of_a_living_process_is_not(tmp_path):
    file = tmp_path / lock.NAME
    file.write_text('{"pid": 1, "started": 0.0, "host": "a node that died"}')
    lock.release_foreign(tmp_path)
    assert not file.exists()
    with lock.hold(tmp_path):
        lock.release_foreign(tmp_path)
        assert file.exists()


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID)
    found = CliRunner().invoke(main, ["sweep", str(grid), "--runs", str(tmp_path / "runs"), "--ray", "127.0.0.1:1"])
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 1
    assert "--ray 127.0.0.1:1" in found.stderr
