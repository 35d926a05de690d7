"""Peak memory of an iteration and of a Hessian-vector product, each in a process of its own."""

import torch
from torch import Tensor

from benchmarks.measure import Goal, Row, Setting, at_most
from benchmarks.peak import Peak, peak
from benchmarks.sharpness import pyhessian_peer
from benchmarks.worlds import Search, bare, bare_passes, images, network, search
from s2ap_core.config import ObjectiveSettings
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.tracking import batch_loss

SHORT = ObjectiveSettings(steps=2)  # further steps of the attack take the same memory again


def _search(setting: Setting) -> tuple[Search, Tensor, Tensor]:
    x, y = images(setting.batch(64), setting)
    return search(network("resnet18", setting), x, SHORT), x, y


def iteration(setting: Setting) -> None:
    ours, x, y = _search(setting)
    for _ in range(2):  # the optimizer's momentum lives from the first to the second
        ours.iterate(x, y)


def passes(setting: Setting) -> None:
    ours, x, y = _search(setting)
    plain, objective = bare(ours.model), ours.objective
    del ours
    for _ in range(2):
        bare_passes(plain, x, y, objective, SHORT.steps)


def products(setting: Setting) -> None:
    ours, x, y = _search(setting)
    with ScoreHessian(ours.model, batch_loss(ours.objective), [(x, x, y)]) as hessian:
        vector = torch.randn(hessian.n, device=x.device)
        for _ in range(2):
            vector = hessian.matvec(vector)
            vector /= vector.norm()


def pyhessian_products(setting: Setting) -> None:
    ours, x, y = _search(setting)
    pyhessian_peer(ours.model, (x, x, y)).eigenvalues(maxIter=2, tol=0)


def run(setting: Setting) -> list[Row]:
    batch = setting.batch(64)
    return [
        *_compare(
            f"an iteration over its bare passes, resnet18, batch {batch}",
            peak(iteration, setting),
            peak(passes, setting),
            at_most(1.20),
        ),
        *_compare(
            f"two HVPs over PyHessian's, resnet18, batch {batch}",
            peak(products, setting),
            peak(pyhessian_products, setting),
            at_most(1.0),
        ),
    ]


def _compare(name: str, ours: Peak, theirs: Peak, goal: Goal) -> list[Row]:
    def mib(size: int) -> str:
        return f"{size / 2**20:.0f} MiB"

    return [
        Row(
            f"peak memory: {name}",
            ours.highest / theirs.highest,
            "x",
            goal,
            f"{mib(ours.highest)} / {mib(theirs.highest)}",
        ),
        Row(
            f"grown by: {name}",
            ours.grown / theirs.grown,
            "x",
            None,
            f"{mib(ours.grown)} / {mib(theirs.grown)}, without Python and its packages",
        ),
    ]
