"""What eigenvalues are measured of here: matrices, and small networks whose Hessian autograd gives."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from s2ap_core.masks.layers import layer_masks
from s2ap_core.masks.masking import attach, bake, scores
from s2ap_diag.curvature.hessian import ScoreHessian


@dataclass
class Matrix:
    """A dense symmetric matrix that knows how often it was multiplied with."""

    entries: Tensor
    products: int = 0

    def __post_init__(self) -> None:
        self.n, self.dtype, self.device = len(self.entries), self.entries.dtype, self.entries.device

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.entries @ v


def with_eigenvalues(values: list[float] | Tensor, seed: int = 0) -> Matrix:
    torch.manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    return Matrix(q @ torch.diag(values) @ q.T)


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two blocks of two layers, and batches of 16 and 8."""
    torch.manual_seed(0)

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6))

    blocks = nn.Sequential(block(), block())
    model = nn.Sequential(blocks, nn.Linear(6, 3)).double()
    x, y = torch.randn(24, 6).double(), torch.arange(24) % 3
    return attach(model, keep=0.5), [(x[:16], y[:16]), (x[16:], y[16:])]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def dense(op: ScoreHessian) -> np.ndarray:
    return torch.stack([op.matvec(e) for e in torch.eye(op.n, dtype=op.dtype)]).numpy()


def dense_by_autograd(model: nn.Module, batch: tuple[Tensor, Tensor], mode: str) -> np.ndarray:
    """diag(w) H diag(w) with H the Hessian in the masked weights of the plain network."""
    plain = bake(model).train(mode == "batch")
    names = [f"{layer}.weight" for layer in layer_masks(model)]
    masked = [plain.get_parameter(name).detach() for name in names]
    w = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.endswith("original")])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([m.numel() for m in masked])
        held = {name: part.view(m.shape) for name, part, m in zip(names, parts, masked, strict=True)}
        return F.cross_entropy(functional_call(plain, held, (batch[0],)), batch[1])

    hessian = torch.autograd.functional.hessian(loss, torch.cat([m.flatten() for m in masked]))
    signs = torch.cat([mask.scores.detach().sign().flatten() for mask in layer_masks(model).values()])
    return ((w * signs)[:, None] * hessian * (w * signs)).numpy()


def dead_network(eps: float = 1e-5) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Two of six channels before BatchNorm keep no weight, and one output of the last layer; [24, 6] images."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6, eps=eps), nn.Tanh(), nn.Linear(6, 3))
    attach(model.double(), keep=0.6)
    with torch.no_grad():
        for layer, rows in (("0", [1, 4]), ("3", [2])):
            scores(model)[f"{layer}.scores"][rows] *= 1e-6
    # As after a long search: a channel that is 0 in every batch.
    model[1].running_mean[[1, 4]], model[1].running_var[[1, 4]] = 0.0, 0.0
    return model, (torch.randn(24, 6).double(), torch.arange(24) % 3)


LIVE = np.r_[[i not in (1, 4) for i in range(6) for _ in range(6)], [i != 2 for i in range(3) for _ in range(6)]]
