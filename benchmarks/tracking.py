"""lambda_max at every iteration of a search: warm starts against the paper's recipe, and a quarter batch."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from torch import Tensor

from benchmarks.measure import Row, Setting, at_most, timed
from benchmarks.worlds import Digits, colour_digits, digits, pretrained, search
from s2ap_core.config import PruneSettings, TrackingSettings
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.seeds import generator
from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.optimization import searched_parameters
from s2ap_diag.curvature.eigen import Lanczos, PowerIteration, lambda_max
from s2ap_diag.curvature.hessian import BatchNormMode, ScoreHessian
from s2ap_diag.curvature.tracking import CurvatureTracker, batch_loss

Batch = tuple[Tensor, Tensor, Tensor]
# One reading in both modes of BatchNorm: (lambda_max, HVPs) by mode.
Reading = dict[str, tuple[float, int]]
MODES: tuple[BatchNormMode, ...] = ("running", "batch")


class Tracked:
    """The tool's tracker with warm starts, on the first ``images`` of each batch (None: all)."""

    def __init__(self, images: int | None = None, modes: Sequence[BatchNormMode] = MODES, **options: float) -> None:
        self.modes = list(modes)
        # All scores alone, which is what the recipes are compared on.
        settings = TrackingSettings(every=1, images=images, batch_norm=self.modes, spectrum=["all"], **options)
        self.tracker = CurvatureTracker(settings)

    def __call__(self, loop: Loop, batch: Batch) -> Reading:
        self.tracker.on_attacked(loop, *batch)
        metrics = {metric: value for iteration, metric, value in self.tracker.rows if iteration == loop.iteration}
        self.tracker.rows = []
        return {mode: (metrics[f"lambda_max_{mode}"], int(metrics[f"hvps_{mode}"])) for mode in self.modes}


def paper_recipe(loop: Loop, batch: Batch) -> Reading:
    """Run ten HVPs from a random vector and one for the Rayleigh quotient, on one retained graph (App. C.1)."""
    readings: Reading = {}
    for mode in MODES:
        with ScoreHessian(loop.model, batch_loss(loop.objective), [batch], batch_norm=mode) as hessian:
            pair = PowerIteration(iterations=10).dominant(hessian, seed=loop.seed)
        readings[mode] = (pair.value, pair.hvps)
    return readings


def converged(loop: Loop, batch: Batch) -> Reading:
    """Compute lambda_max to a residual of 1e-3, which bounds its relative error."""
    readings: Reading = {}
    for mode in MODES:
        with ScoreHessian(loop.model, batch_loss(loop.objective), [batch], batch_norm=mode) as hessian:
            reading = lambda_max(hessian, Lanczos(iterations=128, tolerance=1e-3), seed=loop.seed)
        readings[mode] = (reading.lambda_max, reading.hvps)
    return readings


class Readings(Callback):
    """Lets recipes take turns at every iteration, and times them and the iteration itself."""

    def __init__(self, recipes: Mapping[str, Callable[[Loop, Batch], Reading]], device: str) -> None:
        self.recipes, self.device = recipes, device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.read: dict[str, list[Reading]] = defaultdict(list)
        self.iterations: list[float] = []
        self.mark = time.perf_counter()

    def on_attacked(self, loop: Loop, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        started = time.perf_counter()
        for name, recipe in self.recipes.items():

            def read(name: str = name, recipe: Callable[[Loop, Batch], Reading] = recipe) -> None:
                self.read[name].append(recipe(loop, (x, x_adv, y)))

            self.seconds[name].append(timed(read, self.device))
        self.mark += time.perf_counter() - started  # reading is no part of the iteration

    def on_iteration(self, loop: Loop, step: Step) -> None:
        now = time.perf_counter()
        self.iterations.append(now - self.mark)
        self.mark = now

    def hvps(self, name: str) -> float:
        """Compute the mean HVPs per reading, its modes together."""
        return fmean(sum(hvps for _, hvps in reading.values()) for reading in self.read[name])

    def epoch_means(self, name: str, mode: str, per_epoch: int) -> list[float]:
        """Compute the mean lambda_max of each epoch."""
        values = [reading[mode][0] for reading in self.read[name]]
        return [fmean(values[i : i + per_epoch]) for i in range(0, len(values), per_epoch)]


def run(setting: Setting) -> list[Row]:
    return [_full_width(setting), *_digits(setting)]


def _digits(setting: Setting) -> list[Row]:
    epochs = 1 if setting.quick else 2
    world = digits(setting, epochs=1 if setting.quick else 5)
    quarter = world.settings.batch_size // 4
    readings = Readings(
        {"warm": Tracked(), "paper": paper_recipe, "quarter": Tracked(quarter), "converged": converged}, setting.device
    )
    per_epoch = _search(world, epochs, readings)
    hvps, paper_hvps = readings.hvps("warm"), readings.hvps("paper")
    seconds, paper_seconds = sum(readings.seconds["warm"]), sum(readings.seconds["paper"])
    where = f"digits, {epochs} epochs of {per_epoch} iterations"
    rows = [
        Row(
            f"tracking, HVPs: warm starts over the paper's recipe, {where}",
            hvps / paper_hvps,
            "x",
            at_most(0.35),
            f"{hvps:.1f} / {paper_hvps:.1f} per iteration, both modes of BatchNorm",
        ),
        Row(
            "tracking, time: warm starts over the paper's recipe",
            seconds / paper_seconds,
            "x",
            at_most(0.35),
            f"{seconds:.3g} s / {paper_seconds:.3g} s in all",
        ),
    ]
    for mode in MODES:
        truth = readings.epoch_means("converged", mode, per_epoch)
        for name, what, goal in (
            ("warm", "warm starts", at_most(2.0)),
            ("paper", "the paper's recipe", None),
            ("quarter", "a quarter of the batch", None),
        ):
            means = readings.epoch_means(name, mode, per_epoch)
            off = [100 * (a / b - 1) for a, b in zip(means, truth, strict=True)]
            rows.append(
                Row(
                    f"tracking, epoch mean against the converged one: {what}, {mode}",
                    max(map(abs, off)),
                    "%",
                    goal,
                    "by epoch " + ", ".join(f"{o:+.2f} %" for o in off) + f"; converged {_listed(truth)}",
                )
            )
    return rows


def _search(world: Digits, epochs: int, readings: Readings) -> int:
    """Search for a few epochs; return the iterations per epoch."""
    build_method(MethodSettings(keep=0.1)).attach(world.model, generator("cpu", 0, "scores"))
    loop = world.loop("prune", searched_parameters(world.model, PruneSettings()))
    loop.callbacks = [readings]
    readings.mark = time.perf_counter()
    for loop.epoch in range(1, epochs + 1):
        loop.train_epoch()
    return loop.iterations_per_epoch


def _full_width(setting: Setting) -> Row:
    batch, iterations = setting.batch(64, cpu=32), 4
    data = colour_digits(batch * iterations, setting)
    model = pretrained("resnet18", data, batch // 2, setting)
    ours = search(model, next(data.batches("train", batch)).x)
    readings = Readings({"quarter": Tracked(batch // 4, ["running"])}, setting.device)
    settings = PruneSettings(lr=0.01, batch_size=batch)  # 0.1 would throw a barely trained network about
    loop = Loop("prune", settings, model, ours.objective, ours.optimizer, data, 0, callbacks=[readings])
    loop.epoch = 1
    readings.mark = time.perf_counter()
    loop.train_epoch()
    # The first reading starts from a random vector, the first iteration warms up.
    seconds, iteration = median(readings.seconds["quarter"][1:]), median(readings.iterations[1:])
    return Row(
        f"tracking on a quarter batch over the iteration, resnet18, batch {batch}",
        seconds / iteration,
        "x",
        at_most(0.5),
        f"{seconds:.3g} s / {iteration:.3g} s, running, {readings.hvps('quarter'):.1f} HVPs; its bias stands below",
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
