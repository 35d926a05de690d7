"""The diagnostics: everything that looks at scores and masks.

>>> import torch
>>> from s2ap_core.scores import attach
>>> model = attach(torch.nn.Linear(4, 3), keep=0.5)
>>> batch = (torch.eye(4), torch.tensor([0, 1, 2, 0]))
>>> loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
>>> lambda_max(score_hessian(model, loss, [batch])).residual < 1
True
"""

from s2ap_diag.curvature.eigen import (
    Curvature,
    Eigenpair,
    LambdaMax,
    curvature,
    lambda_max,
    lanczos,
    power_iteration,
    spectral_density,
    trace,
)
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.hessian import ScoreHessian as score_hessian
from s2ap_diag.loss_difference import LossDifference, loss_difference
from s2ap_diag.stability import Hamming, PackedMasks, hamming, score_margins, trajectory

__all__ = [
    "Curvature",
    "Eigenpair",
    "Hamming",
    "LambdaMax",
    "LossDifference",
    "PackedMasks",
    "ScoreHessian",
    "curvature",
    "hamming",
    "lambda_max",
    "lanczos",
    "loss_difference",
    "power_iteration",
    "score_hessian",
    "score_margins",
    "spectral_density",
    "trace",
    "trajectory",
]
