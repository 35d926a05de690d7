"""Runs of seconds, and their report."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from s2ap_core.data import InMemory
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from tests.diag.report.browsers import CHROMIUM, DRIVER, FLAGS, MISSING
from tests.diag.report.gallery import gallery
from tests.diag.report.pages import HOSTILE, IMAGE, SCRIPT, Parsed, copy, dense, report
from tests.tiny import Tiny

ARMS = {
    "orig": {"seed": 9},
    "s2ap": {
        "seed": 10,
        "minimizer": {"name": "s2ap", "gamma": 0.01, "warmup": 1},
        "finetune": {"awp": True},
    },
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a browser where there is none."""
    if not (CHROMIUM and DRIVER):
        without = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once what was left out; under ``make test`` the Makefile does."""
    if not (CHROMIUM and DRIVER):
        terminalreporter.write_line(MISSING)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, new_run, data: InMemory) -> Path:
    """A run of each arm, tracked at each iteration, the first with its sharpness measured."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        for name, settings in ARMS.items():
            run = new_run(folder / name, tracking={"every": 1, "iterations": 2, "images": 8}, **settings)
            Stages(run, data, callbacks=build_trackers(run.config.tracking)).all()
        checkpoint = load_checkpoint(folder / "orig/ckpt/prune-best.safetensors")
        settings = SharpnessSettings(rho=(0.001, 0.01), images=16, batch_size=16, solver=Lanczos(iterations=3), steps=3)
        measured = measure_sharpness(checkpoint, data, run.config.objective, settings)
        (folder / "orig/sharpness.json").write_text(json.dumps([measured.record()]))
    return folder


@pytest.fixture(scope="session")
def runs(trained: Path, tmp_path_factory) -> Path:
    """The two arms, runs with hostile names and settings, a dense one, and three that cannot be shown."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ARMS:
        copy(trained / name, folder / name)
    hostile = copy(trained / "s2ap", folder / IMAGE.replace("/", "") / "50% #1?", title=HOSTILE, seed=2)
    (hostile / "environment.json").write_text(
        json.dumps(json.loads((hostile / "environment.json").read_text()) | {SCRIPT: IMAGE, "half": "\ud800"})
    )
    copy(trained / "orig", folder / "javascript:alert(1)", network={"name": "tiny"}, title=SCRIPT)
    copy(trained / "orig", folder / ("n" * 200))
    dense(trained, folder / "dense")
    (copy(trained / "orig", folder / f"masks {SCRIPT[:8]}") / "masks/epoch-002.safetensors").write_bytes(b"cut")
    (copy(trained / "orig", folder / "metrics") / "metrics.csv").write_text("stage,epoch\n<b>")
    (copy(trained / "orig", folder / "half") / "results.json").unlink()
    return folder


@pytest.fixture(scope="session")
def page(runs: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        result = report(runs, "--title", HOSTILE, "--out", runs / "report.html")
    assert result.exit_code == 0, result.output
    return runs / "report.html"


@pytest.fixture(scope="session")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def world(trained: Path, tmp_path_factory) -> Path:
    """Two arms on three folds, and masks without a search that were attacked otherwise, of the paper's size."""
    folder = tmp_path_factory.mktemp("world")
    gallery(
        trained / "orig", folder, methods=("hydra",), keeps=(0.1,), arms=("orig", "s2ap"), finetuning=3, pruned=False
    )
    gallery(
        trained / "orig", folder, methods=("magnitude",), keeps=(0.1,), arms=("orig",), finetuning=3, attack="pgd-50"
    )
    return folder


@pytest.fixture(scope="session")
def world_page(world: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        result = report(world, "--out", world / "report.html")
    assert result.exit_code == 0, result.output
    return world / "report.html"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page) -> Callable[..., object]:
    """``opened(width=1600, scheme="light", media="screen")``: the browser with the report freshly loaded."""

    def load(width: int = 1600, scheme: str = "light", media: str = "screen", page: Path = page) -> object:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get("about:blank")  # a change of the fragment alone loads nothing
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(page.as_uri())
        # On a machine that is busy the driver may take the page before for the one that it should wait for.
        ready = f"return document.URL === {json.dumps(page.as_uri())} && document.readyState === 'complete'"
        WebDriverWait(browser, timeout=60).until(lambda driver: driver.execute_script(ready))
        return browser

    return load
