"""The diagnostics: everything that looks at scores and masks.

>>> import torch
>>> from s2ap_diag import attach, lambda_max, score_hessian
>>> model = attach(torch.nn.Linear(4, 3), keep=0.5)
>>> batch = (torch.eye(4), torch.tensor([0, 1, 2, 0]))
>>> loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
>>> lambda_max(score_hessian(model, loss, [batch])).residual < 1
True

What it offers is imported when it is asked for: ``s2ap-diag --help`` would wait seconds for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s2ap_core import __version__ as __version__

if TYPE_CHECKING:
    from s2ap_core.masks.masking import attach as attach
    from s2ap_core.masks.masking import masks as masks
    from s2ap_core.masks.masking import scores as scores
    from s2ap_diag.comparison.statistics import Comparison as Comparison
    from s2ap_diag.comparison.statistics import compare as compare
    from s2ap_diag.curvature.density import spectral_density as spectral_density
    from s2ap_diag.curvature.density import trace as trace
    from s2ap_diag.curvature.eigen import Eigenpair as Eigenpair
    from s2ap_diag.curvature.eigen import LambdaMax as LambdaMax
    from s2ap_diag.curvature.eigen import Lanczos as Lanczos
    from s2ap_diag.curvature.eigen import PowerIteration as PowerIteration
    from s2ap_diag.curvature.eigen import Solver as Solver
    from s2ap_diag.curvature.eigen import lambda_max as lambda_max
    from s2ap_diag.curvature.hessian import ScoreHessian as ScoreHessian
    from s2ap_diag.curvature.loss_difference import LossDifference as LossDifference
    from s2ap_diag.curvature.loss_difference import loss_difference as loss_difference
    from s2ap_diag.curvature.loss_difference import loss_differences as loss_differences
    from s2ap_diag.curvature.meter import SharpnessMeter as SharpnessMeter
    from s2ap_diag.curvature.pyhessian import PyHessian as PyHessian
    from s2ap_diag.execution.following import Follower as Follower
    from s2ap_diag.execution.following import lightning_callback as lightning_callback
    from s2ap_diag.reading.anything import load as load
    from s2ap_diag.stability import Hamming as Hamming
    from s2ap_diag.stability import PackedMasks as PackedMasks
    from s2ap_diag.stability import hamming as hamming
    from s2ap_diag.stability import trajectory as trajectory
    from s2ap_diag.stability.margins import score_margins as score_margins
    from s2ap_diag.stability.meter import StabilityMeter as StabilityMeter

    score_hessian = ScoreHessian

_OFFERED = {
    "attach": "s2ap_core.masks.masking.attach",
    "masks": "s2ap_core.masks.masking.masks",
    "scores": "s2ap_core.masks.masking.scores",
    "Eigenpair": "s2ap_diag.curvature.eigen.Eigenpair",
    "LambdaMax": "s2ap_diag.curvature.eigen.LambdaMax",
    "Lanczos": "s2ap_diag.curvature.eigen.Lanczos",
    "PowerIteration": "s2ap_diag.curvature.eigen.PowerIteration",
    "PyHessian": "s2ap_diag.curvature.pyhessian.PyHessian",
    "Solver": "s2ap_diag.curvature.eigen.Solver",
    "lambda_max": "s2ap_diag.curvature.eigen.lambda_max",
    "spectral_density": "s2ap_diag.curvature.density.spectral_density",
    "trace": "s2ap_diag.curvature.density.trace",
    "ScoreHessian": "s2ap_diag.curvature.hessian.ScoreHessian",
    "score_hessian": "s2ap_diag.curvature.hessian.ScoreHessian",
    "LossDifference": "s2ap_diag.curvature.loss_difference.LossDifference",
    "loss_difference": "s2ap_diag.curvature.loss_difference.loss_difference",
    "loss_differences": "s2ap_diag.curvature.loss_difference.loss_differences",
    "SharpnessMeter": "s2ap_diag.curvature.meter.SharpnessMeter",
    "Follower": "s2ap_diag.execution.following.Follower",
    "lightning_callback": "s2ap_diag.execution.following.lightning_callback",
    "load": "s2ap_diag.reading.anything.load",
    "Hamming": "s2ap_diag.stability.Hamming",
    "PackedMasks": "s2ap_diag.stability.PackedMasks",
    "hamming": "s2ap_diag.stability.hamming",
    "score_margins": "s2ap_diag.stability.margins.score_margins",
    "StabilityMeter": "s2ap_diag.stability.meter.StabilityMeter",
    "trajectory": "s2ap_diag.stability.trajectory",
    "Comparison": "s2ap_diag.comparison.statistics.Comparison",
    "compare": "s2ap_diag.comparison.statistics.compare",
}
"""Where each public name is defined; the imports above say the same to type checkers."""

__all__ = [*_OFFERED, "__version__"]

if not TYPE_CHECKING:  # a type checker would take any name for one that is offered

    def __getattr__(name: str) -> Any:
        if name in _OFFERED:
            module, _, attribute = _OFFERED[name].rpartition(".")
            value = getattr(import_module(module), attribute)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
