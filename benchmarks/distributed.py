"""One iteration of S2AP on several processes, and what they say to each other."""

import os
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.measure import Row, Setting, timed
from benchmarks.worlds import images, network, search
from s2ap_core.distributed.batch_norm import Statistics, batch_statistics
from s2ap_core.distributed.group import add_up, device_of, process_group
from s2ap_core.distributed.share import Share
from s2ap_core.masks.masking import scores
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.perturbation import Perturbation

BATCH = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True)
class Case:
    """So many processes, each with so many threads."""

    processes: int
    threads: int
    batch_norm: Statistics = "sync"

    def __str__(self) -> str:
        if self.processes == 1:
            return f"1 process, {self.threads} threads" if self.threads > 1 else "1 process"
        return f"{self.processes} processes, {self.batch_norm} statistics"


@dataclass(frozen=True)
class Seconds:
    """Of an iteration, of summing its gradient, and the gradient's bytes."""

    iteration: float
    summing: float
    size: int


def measure(case: Case, setting: Setting) -> Seconds:
    """Run what each of the processes runs."""
    torch.set_num_threads(case.threads)
    with process_group():
        count = setting.batch(BATCH[setting.device])
        setting = replace(setting, device=device_of(setting.device))
        x, y = images(count, setting)
        ours, share = search(network("resnet18", setting), x), Share.own(count)
        perturbation = Perturbation(ours.model, score_layers(ours.model), radius=Relative(0.001))
        rows = slice(share.rank, None, share.world)

        def step() -> None:
            with batch_statistics(ours.model, case.batch_norm):
                iterate(
                    ours.model,
                    x[rows],
                    y[rows],
                    objective=ours.objective,
                    optimizer=ours.optimizer,
                    generator=share.generator(x.device, 0, "benchmark"),
                    share=share,
                    perturbation=perturbation,
                )

        gradient = [torch.zeros_like(tensor) for tensor in scores(ours.model).values()]
        step()
        add_up(gradient)
        return Seconds(
            median(timed(step, setting.device) for _ in range(3)),
            median(timed(lambda: add_up(gradient), setting.device) for _ in range(5)),
            sum(tensor.numel() * tensor.element_size() for tensor in gradient),
        )


def run(setting: Setting) -> list[Row]:
    devices = torch.cuda.device_count() if setting.device == "cuda" else os.cpu_count() or 1
    many = max(2, devices)
    alone = Case(1, 1)
    cases = [alone, Case(1, setting.threads), Case(many, 1), Case(many, 1, "local")]
    if setting.device == "cuda" and devices == 1:
        cases = [alone]
    measured = {case: _launch(case, setting) for case in dict.fromkeys(cases)}
    rows = []
    for case, seconds in measured.items():
        detail = f"{seconds.iteration / measured[alone].iteration:.2f} of {alone}"
        if case.processes > 1:
            detail += f"; the sum of a gradient of {seconds.size / 1e6:.1f} MB takes {seconds.summing:.3g} s, twice"
        name = f"S2AP iteration, resnet18, batch {setting.batch(BATCH[setting.device])}, {case}"
        rows.append(Row(name, seconds.iteration, "s", None, detail))
    return rows


def _launch(case: Case, setting: Setting) -> Seconds:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=case.processes,
        run_id="benchmark",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    by_rank: dict[int, Seconds] = elastic_launch(config, measure)(case, setting)
    return max(by_rank.values(), key=lambda seconds: seconds.iteration)
