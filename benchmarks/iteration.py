"""The pruning iteration against its floor and against the published step."""

from collections.abc import Callable

from torch import Tensor

from benchmarks import published
from benchmarks.measure import Goal, Row, Setting, at_least, at_most, interleaved
from benchmarks.worlds import KEEP, bare, bare_passes, images, network, search, settle_statistics, sgd
from s2ap_core.seeds import generator

PUBLISHED: list[tuple[str, int, Goal | None]] = [
    ("resnet18", 64, at_least(5.0)),
    ("resnet18", 128, at_least(3.3)),
    ("vgg16_bn", 64, None),
    ("wrn_28_4", 64, None),
]
"""Measured on a GPU; a CPU takes minutes for each, and its profile of the first has the ratio beside its shares."""

FLOORS: list[tuple[str, int | None, Goal]] = [
    ("resnet18", None, at_most(0.95)),
    ("wrn_28_4", None, at_most(0.90)),
    ("vgg16_bn", None, at_most(1.02)),
    ("resnet18", 8, at_most(0.75)),
]


def run(setting: Setting) -> list[Row]:
    published_on = PUBLISHED if setting.device != "cpu" else []
    return [*(_floor(setting, *case) for case in FLOORS), *(_published(setting, *case) for case in published_on)]


def _floor(setting: Setting, architecture: str, width: int | None, goal: Goal) -> Row:
    x, y = images(setting.batch(64, cpu=32), setting)
    ours = search(network(architecture, setting, width), x)
    plain = bare(ours.model)
    functions: dict[str, Callable[[], object]] = {
        "floor": lambda: bare_passes(plain, x, y, ours.objective),
        "ours": lambda: ours.iterate(x, y),
    }
    for function in functions.values():
        function()
    rounds = interleaved(functions, rounds=3, device=setting.device)
    name = f"iteration over its bare passes, {architecture}{f' of width {width}' if width else ''}, batch {len(x)}"
    return Row(name, rounds.ratio("ours", "floor"), "x", goal, rounds.compare("ours", "floor"))


def published_search(name: str, x: Tensor, y: Tensor, setting: Setting) -> Callable[[], None]:
    """Build the published step on a network of its own, ready to be called."""
    theirs = published.attach(network(name, setting), KEEP)
    settle_statistics(theirs, x)
    theirs.train()
    optimizer = sgd([p for p in theirs.parameters() if p.requires_grad])

    def published_step() -> None:
        rng = generator(x.device, 0, "benchmark")
        published.step(theirs, x, y, optimizer=optimizer, generator=rng, trades=published.Trades())

    return published_step


def _published(setting: Setting, name: str, batch: int, goal: Goal | None) -> Row:
    x, y = images(setting.batch(batch), setting)
    ours = search(network(name, setting), x)
    published_step = published_search(name, x, y, setting)
    # Ours warms up the convolutions of both.
    ours.iterate(x, y)
    rounds = interleaved(
        {"published": published_step, "ours": lambda: ours.iterate(x, y)},
        rounds=3,
        device=setting.device,
    )
    ratio, detail = rounds.ratio("published", "ours"), rounds.compare("published", "ours")
    return Row(f"published step over ours, {name}, batch {len(x)}", ratio, "x", goal, detail)
