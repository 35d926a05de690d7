"""The score Hessian against the dense one, closed forms, curvlinops, and what measuring must not touch."""

import copy
import gc
import os
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from curvlinops import HessianLinearOperator
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import s2ap_core.masks.topk
import s2ap_diag.curvature.hessian
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import constant_mask, layer_masks
from s2ap_core.masks.masking import attach, bake, masks, scores
from s2ap_core.methods import MethodSettings, build_method
from s2ap_diag.curvature.dead import dead_scores
from s2ap_diag.curvature.eigen import Lanczos, PowerIteration, lambda_max
from s2ap_diag.curvature.hessian import ScoreHessian, batch_norm_mode
from s2ap_diag.curvature.memory import LiveBytes


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.reshape(-1, 1, 6, 6))))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Linear(6, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(-1, 6, 6))
        q, k, v = self.qkv(tokens).reshape(-1, 6, 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        return self.head((tokens + mixed).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(36, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"conv": ConvNet, "mlp": mlp, "attention": Attention}
CASES = [("conv", "running"), ("conv", "batch"), ("mlp", "running"), ("attention", "running")]


def world(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return attach(model, keep=0.4), (torch.randn(12, 36, dtype=dtype), torch.arange(12) % 3)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def dense_hessian(model: nn.Module, batch: tuple[Tensor, Tensor], mode: str) -> Tensor:
    """By torch.autograd.functional on the plain network, the surrogate mask written out: m + |s| - |s|."""
    plain = bake(model).train(mode == "batch")
    weights = {name: p.detach() for name, p in model.named_parameters() if name.endswith("original")}
    masks = {name: mask for name, mask in layer_masks(model).items()}
    values = [mask.scores.detach() for mask in masks.values()]

    def loss(vector: Tensor) -> Tensor:
        weight_of = {}
        for (name, mask), s, value in zip(
            masks.items(), vector.split([v.numel() for v in values]), values, strict=True
        ):
            surrogate = mask.mask().detach() + s.view(value.shape).abs() - value.abs()
            weight_of[f"{name}.weight"] = weights[f"{name}.parametrizations.weight.original"] * surrogate
        return F.cross_entropy(functional_call(plain, weight_of, (batch[0],)), batch[1])

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, torch.cat([v.reshape(-1) for v in values]))


def snapshot(model: nn.Module) -> list[object]:
    gradients = [None if p.grad is None else p.grad.clone().numpy().tobytes() for p in model.parameters()]
    return [
        [(name, t.clone().numpy().tobytes()) for name, t in model.state_dict().items()],
        [id(p) for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        gradients,
        [m.training for m in model.modules()],
        [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
    ]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_products_and_lambda_max_equal_those_of_the_dense_hessian(name: str, mode: str) -> None:
    model, batch = world(name)
    dense = dense_hessian(model, batch, mode)
    eigenvalues = np.linalg.eigvalsh(dense.numpy())
    with ScoreHessian(model, cross_entropy, [batch], batch_norm=mode) as op:
        for v in torch.randn(3, op.n, dtype=torch.float64):
            torch.testing.assert_close(op.matvec(v), dense @ v, rtol=1e-5, atol=1e-5 * float(dense.norm()))
        assert op.symmetry_defect() < 1e-12
        lanczos = lambda_max(op, Lanczos(iterations=op.n, tolerance=1e-8))
        power = lambda_max(op, PowerIteration(iterations=3000, tolerance=1e-6))
    assert lanczos.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-4)
    assert power.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-4)
    assert power.dominant_eigenvalue == pytest.approx(eigenvalues[abs(eigenvalues).argmax()], rel=1e-4)


def test_single_precision_agrees_with_double() -> None:
    model, (x, y) = world("conv", torch.float32)
    dense = dense_hessian(copy.deepcopy(model).double(), (x.double(), y), "running")
    with ScoreHessian(model, cross_entropy, [(x, y)]) as op:
        v = torch.randn(op.n)
        product = op.matvec(v)
        assert product.dtype == torch.float32
        assert (product.double() - dense @ v.double()).norm() < 1e-5 * (dense @ v.double()).norm()
        assert op.symmetry_defect() < 1e-6


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_curvlinops_gives_the_same_spectrum_by_way_of_the_masked_weights(name: str) -> None:
    # H of the plain network in its masked weights, then diag(w) H diag(w): no mask, no surrogate.
    model, batch = world(name)
    plain = bake(model).eval()
    layers = [plain.get_submodule(layer) for layer in layer_masks(model)]
    in_weights = HessianLinearOperator(
        plain, nn.CrossEntropyLoss(), [layer.weight for layer in layers], [batch]
    ) @ torch.eye(sum(layer.weight.numel() for layer in layers), dtype=torch.float64)
    w = torch.cat([p.detach().reshape(-1) for n, p in model.named_parameters() if n.endswith("original")])
    expected = np.linalg.eigvalsh((w[:, None] * in_weights * w).numpy())
    with ScoreHessian(model, cross_entropy, [batch]) as op:
        found = lambda_max(op, Lanczos(iterations=op.n))
    assert found.lambda_max == pytest.approx(expected[-1], rel=1e-3)
    assert found.dominant_eigenvalue == pytest.approx(expected[abs(expected).argmax()], rel=1e-3)


def test_masked_linear_regression_has_its_closed_form() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 7).double(), torch.randn(20, 1).double()
    model = attach(nn.Linear(7, 1, bias=False).double(), keep=0.5)
    with torch.no_grad():
        scores(model)["scores"].copy_(torch.randn(1, 7))
    w, signs = model.parametrizations.weight.original.detach()[0], scores(model)["scores"].detach()[0].sign()
    # 1/2 of the mean squared error has the Hessian X'X / n in the weights, masked or not.
    expected = (w * signs)[:, None] * (x.T @ x / 20) * (w * signs)

    def half_mse(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (m(batch[0]) - batch[1]).square().mean()

    with ScoreHessian(model, half_mse, [(x, y)]) as op:
        columns = torch.stack([op.matvec(e) for e in torch.eye(7).double()], dim=1)
        torch.testing.assert_close(columns, expected)
        assert lambda_max(op, Lanczos()).lambda_max == pytest.approx(
            float(torch.linalg.eigvalsh(w[:, None] * (x.T @ x / 20) * w)[-1]), rel=1e-8
        )


def test_rescaling_a_layers_scores_changes_nothing() -> None:
    model, batch = world("conv")
    v = torch.randn(ScoreHessian(model, cross_entropy, [batch]).n, dtype=torch.float64)
    before = ScoreHessian(model, cross_entropy, [batch]).matvec(v)
    with torch.no_grad():
        scores(model)["conv2.scores"].mul_(4.0)
    assert torch.equal(ScoreHessian(model, cross_entropy, [batch]).matvec(v), before)


def test_batches_of_unequal_size_weigh_by_their_samples() -> None:
    model, (x, y) = world("conv")
    whole = ScoreHessian(model, cross_entropy, [(x, y)])
    parts = ScoreHessian(model, cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])])
    v = torch.randn(whole.n, dtype=torch.float64)
    torch.testing.assert_close(parts.matvec(v), whole.matvec(v))
    alone = [ScoreHessian(model, cross_entropy, [batch]) for batch in parts.batches]
    torch.testing.assert_close(0.75 * alone[0].matvec(v) + 0.25 * alone[1].matvec(v), whole.matvec(v))
    torch.testing.assert_close(torch.stack(parts.quotients), torch.stack([v @ one.matvec(v) for one in alone]))
    assert (whole.hvps, parts.hvps) == (2, 2)


@pytest.mark.parametrize("size", [0, 4])
def test_a_batch_without_weight_adds_nothing(size: int) -> None:
    model, (x, y) = world("conv")
    nothing = (x[:size], y[:size])
    one, several = (
        ScoreHessian(model, cross_entropy, batches, weights=weights)
        for batches, weights in (([nothing], [0.0]), ([nothing, (x, y)], [0.0, 1.0]))
    )
    v = torch.randn(one.n, dtype=torch.float64)
    assert not one.matvec(v).any()
    assert [float(quotient) for quotient in one.quotients] == [0.0]
    whole = ScoreHessian(model, cross_entropy, [(x, y)])
    torch.testing.assert_close(several.matvec(v), whole.matvec(v))
    torch.testing.assert_close(torch.stack(several.quotients), torch.stack([v.new_zeros(()), *whole.quotients]))
    if size == 0:
        for batches in ([nothing], [nothing, nothing]):
            with pytest.raises(InputError, match="no sample in them"):
                ScoreHessian(model, cross_entropy, batches).matvec(v)


def test_one_batch_shows_a_loss_that_is_another_function_each_time() -> None:
    model, batch = world("conv")

    def dropped(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(F.dropout(m(b[0]), 0.5, training=True), b[1])

    assert ScoreHessian(model, cross_entropy, [batch]).symmetry_defect() < 1e-12
    torch.manual_seed(0)
    assert ScoreHessian(model, dropped, [batch]).symmetry_defect() > 1e-3


def naive_dead(model: nn.Module) -> tuple[int, list[bool]]:
    """Channel by channel: one that has no weight left, and all its scores."""
    channels, where = 0, []
    for layer, mask in layer_masks(model).items():
        bits = masks(model)[f"{layer}.weight".removeprefix(".")]
        for row in bits:
            dead = not any(row.flatten().tolist())
            channels += dead
            if mask.scores.shape == bits.shape:
                where += [dead] * row.numel()
    return channels, where


def test_a_channel_without_weights_is_dead_and_so_is_each_of_its_scores() -> None:
    model, batch = world("conv")
    assert dead_scores(model).channels == 0
    with torch.no_grad():
        scores(model)["conv2.scores"][[0, 3]] *= 1e-6
        scores(model)["fc.scores"][1] *= 1e-6
    found = dead_scores(model)
    channels, where = naive_dead(model)
    assert (found.channels, found.where.tolist()) == (channels, where)
    assert channels == 3
    assert found.where.sum() == 2 * 27 + 4
    part = dead_scores(model, ["fc"])
    assert (part.channels, part.where.sum()) == (1, 4)
    vector = torch.full((len(where),), len(where) ** -0.5)
    assert found.share(vector) == pytest.approx(sum(where) / len(where))
    assert len(where) == ScoreHessian(model, cross_entropy, [batch]).n


def test_with_a_score_for_each_input_channel_no_output_channel_is_dead() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    method = build_method(MethodSettings(name="hydra-channels", flops_reduction=8))
    method.image_shape = (1, 6, 6)
    method.attach(model, torch.Generator())
    found = dead_scores(model)
    assert (found.channels, found.where.any()) == (0, False)
    assert naive_dead(model)[0] == 0
    assert len(found.where) == sum(mask.scores.numel() for mask in layer_masks(model).values())


def test_a_layers_operator_is_the_diagonal_block_of_the_whole() -> None:
    model, batch = world("conv")
    dense, n = dense_hessian(model, batch, "running"), 27
    op = ScoreHessian(model, cross_entropy, [batch], layers=["conv1"])
    assert op.n == n
    v = torch.randn(n, dtype=torch.float64)
    torch.testing.assert_close(op.matvec(v), dense[:n, :n] @ v)


def test_it_serves_scipy_as_a_linear_operator() -> None:
    model, batch = world("mlp")
    expected = np.linalg.eigvalsh(dense_hessian(model, batch, "running").numpy())
    with ScoreHessian(model, cross_entropy, [batch]) as op:
        found = eigsh(op.as_linear_operator(), k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(sorted(found), expected[-2:], rtol=1e-6)


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("breaks", [False, True])
def test_measuring_leaves_the_model_bit_for_bit_as_it_was(mode: str, breaks: bool) -> None:
    model, batch = world("conv")
    model.train()
    model.bn1.eval()
    model.conv1.bias.requires_grad_(False)
    cross_entropy(model, batch).backward()
    before = snapshot(model)

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        value = cross_entropy(m, b)
        if breaks:
            raise RuntimeError("interrupted")
        return value

    op = ScoreHessian(model, loss, [batch], batch_norm=mode)
    v = torch.ones(op.n, dtype=torch.float64)
    if breaks:
        with pytest.raises(RuntimeError, match="interrupted"):
            op.matvec(v)
    else:
        with torch.no_grad():  # the caller's grad mode is none of the operator's business
            assert op.matvec(v).isfinite().all()
    assert snapshot(model) == before


def test_batch_norm_mode_decides_which_statistics_are_used() -> None:
    model, (x, _) = world("conv")
    model.train()
    with batch_norm_mode(model, "running"):
        running = model(x)
        assert torch.equal(running[:3], model(x[:3]))  # no sample sees another
    with batch_norm_mode(model, "batch"):
        batch = model(x)
        assert not torch.allclose(batch[:3], model(x[:3]))
    assert not torch.allclose(running, batch)
    assert torch.equal(model(x), batch)  # and train mode normalises by the batch too


def test_one_graph_and_one_selection_per_layer_serve_all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = world("conv")
    selections, forwards = [], []
    select = s2ap_core.masks.topk.topk_mask
    monkeypatch.setattr(s2ap_core.masks.topk, "topk_mask", lambda *args: selections.append(args) or select(*args))
    model.register_forward_hook(lambda *_: forwards.append(1))

    def clean_and_adversarial(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(m, batch) + (m(batch[0] + 0.1) - m(batch[0])).square().mean()

    with ScoreHessian(model, clean_and_adversarial, [(x, y)]) as op:
        for v in torch.eye(op.n, dtype=torch.float64)[:5]:
            op.matvec(v)
    assert (len(selections), len(forwards), op.hvps) == (3, 3, 5)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_graphs_of_several_batches_are_kept_where_they_fit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = world("conv")
    batches, forwards = [(x[:7], y[:7]), (x[7:], y[7:])], []
    v = torch.randn(sum(s.numel() for s in scores(model).values()), dtype=torch.float64)

    def products(limit: int) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(s2ap_diag.curvature.hessian, "KEPT_GRAPHS", limit)
        forwards.clear()
        with model.register_forward_hook(lambda *_: forwards.append(1)):
            op = ScoreHessian(model, cross_entropy, batches, batch_norm=mode)
            return [op.matvec(v), op.matvec(v), torch.stack(op.quotients)], len(forwards)

    kept, built = products(1 << 30)
    anew, built_anew = products(1)
    assert (built, built_anew) == (2, 5)  # one to see how large they are
    for a, b in zip(kept, anew, strict=True):
        assert torch.equal(a, b)


def test_only_several_graphs_are_weighed_and_those_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighing slows each operation down; a search that is tracked reads one batch at a time."""
    weighed: list[int] = []

    class Noted(LiveBytes):
        def __enter__(self) -> "Noted":
            weighed.append(1)
            return super().__enter__()

    monkeypatch.setattr(s2ap_diag.curvature.hessian, "LiveBytes", Noted)
    model, (x, y) = world("mlp")
    for batches, times in (([(x, y)], 0), ([(x[:7], y[:7]), (x[7:], y[7:])], 1)):
        weighed.clear()
        op = ScoreHessian(model, cross_entropy, batches)
        op.matvec(torch.ones(op.n, dtype=torch.float64))
        op.symmetry_defect()
        assert len(weighed) == times


def test_memory_stays_flat_over_200_uses() -> None:
    model = attach(nn.Sequential(nn.Linear(36, 256), nn.ReLU(), nn.Linear(256, 3)), keep=0.5)
    batch = (torch.randn(1000, 36), torch.arange(1000) % 3)  # a graph of over 1 MB

    def use(times: int) -> int:
        for _ in range(times):
            with ScoreHessian(model, cross_entropy, [batch]) as op:
                op.matvec(torch.ones(op.n))
        return psutil.Process(os.getpid()).memory_info().rss

    gc.disable()  # what only the cycle collector would free counts as leaked
    try:
        before = use(20)
        assert use(200) - before < 30e6
    finally:
        gc.enable()


def test_a_layer_that_the_loss_does_not_use_has_zero_rows() -> None:
    model, (x, y) = world("mlp")
    model.add_module("unused", nn.Linear(2, 2).double())
    model = attach(bake(model), keep=0.5)

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m[3](m[1](m[0](batch[0]))), batch[1])

    whole = ScoreHessian(model, loss, [(x, y)])
    product = whole.matvec(torch.ones(whole.n, dtype=torch.float64))
    assert product[:-4].any()
    assert not product[-4:].any()
    block = whole.restricted(["unused"])
    assert not block.matvec(torch.ones(4, dtype=torch.float64)).any()


def test_input_that_cannot_be_used_is_named() -> None:
    model, batch = world("mlp")
    with pytest.raises(InputError, match="no scores"):
        ScoreHessian(mlp(), cross_entropy, [batch])
    with pytest.raises(InputError, match="layer 'conv9' has no scores"):
        ScoreHessian(model, cross_entropy, [batch], layers=["conv9"])
    with pytest.raises(InputError, match="batch_norm = 'train'"):
        ScoreHessian(model, cross_entropy, [batch], batch_norm="train")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no batch"):
        ScoreHessian(model, cross_entropy, [])
    v = torch.ones(ScoreHessian(model, cross_entropy, [batch]).n, dtype=torch.float64)
    with pytest.raises(InputError, match="the loss is nan"):
        ScoreHessian(model, cross_entropy, [(batch[0] * torch.nan, batch[1])]).matvec(v)
    with constant_mask(model), pytest.raises(InputError, match="does not depend on the scores"):
        ScoreHessian(model, cross_entropy, [batch]).matvec(v)
    with torch.no_grad():
        scores(model)["0.scores"][0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        ScoreHessian(model, cross_entropy, [batch]).matvec(v)
