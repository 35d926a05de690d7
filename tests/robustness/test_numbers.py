"""Scores, batches and types at the edge of what floats hold: a defined result, or one line that says why not."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import Outcome
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.masking import attach, attach_masks, masks, scores
from s2ap_core.masks.parametrization import FixedMask, ScoreMask
from s2ap_core.masks.topk import n_dropped, topk_mask
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_diag import Lanczos, hamming, lambda_max, loss_difference, score_hessian
from s2ap_diag.reading.read import read
from s2ap_diag.stability.margins import score_margins

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")

DENORMAL = 1e-42
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "all equal": lambda s: torch.full_like(s, 0.25),
    "all equal but for signs": lambda s: 0.25 * s.sign(),
    "all zero": torch.zeros_like,
    "zeros of both signs": lambda s: 0.0 * s.sign(),
    "denormal": lambda s: DENORMAL * torch.arange(s.numel()).view_as(s),
    "denormal and normal": lambda s: torch.where(s > 0, s, DENORMAL * s),
    "1e38": lambda s: 1e38 * s.sign(),
    "1e38 and normal": lambda s: torch.where(s > 0.5, 1e38, s),
    "the largest": lambda s: torch.finfo(s.dtype).max * s.sign(),
    "of 76 orders of magnitude": lambda s: 10.0 ** torch.linspace(-38, 38, s.numel()).view_as(s),
    "integers": lambda s: (3 * s).round(),
}
KEEPS = [1e-9, 0.001, 0.3, 0.5, 0.999, 1.0]


def naive_mask(values: Tensor, keep: float) -> np.ndarray:
    """The last of a stable ascending sort by magnitude, as the published code selects."""
    magnitudes = np.abs(values.detach().numpy().astype(np.longdouble)).ravel()
    order = sorted(range(magnitudes.size), key=lambda i: magnitudes[i])
    mask = np.zeros(magnitudes.size, bool)
    mask[order[int((1 - keep) * magnitudes.size) :]] = True
    return mask.reshape(values.shape)


def with_scores(model: nn.Module, make: Callable[[Tensor], Tensor], keep: float = 0.3) -> nn.Module:
    """The network masked by scores that ``make`` makes of normal draws."""
    rng = torch.Generator().manual_seed(0)

    def mask(_name: str, layer: Any) -> ScoreMask:
        return ScoreMask(make(torch.randn(layer.weight.shape, generator=rng)), keep)

    return attach_masks(model, mask)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[-1])


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", SCORES)
def test_masks_keep_exactly_their_budget(fault_table: Any, kind: str, keep: float) -> None:
    values = SCORES[kind](torch.randn(7, 11, generator=torch.Generator().manual_seed(1)))
    mask = ScoreMask(values, keep).mask().detach()
    assert int(mask.sum()) == values.numel() - n_dropped(values.numel(), keep)
    assert np.array_equal(mask.numpy().astype(bool), naive_mask(values, keep))
    fault_table.add("odd scores / mask", True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n_keep", [0, 1, 5, 9, 10])
def test_scores_without_an_order_have_no_mask(fault_table: Any, value: float, n_keep: int) -> None:
    """Infinity has its place in the order, and NaN has none."""
    values = torch.arange(1.0, 11.0)
    values[3] = value
    if math.isnan(value):
        with pytest.raises(InputError, match="scores hold NaN"):
            topk_mask(values.abs(), n_keep)
    else:
        largest_first = [3, 9, 8, 7, 6, 5, 4, 2, 1, 0]
        assert topk_mask(values.abs(), n_keep).nonzero()[:, 0].tolist() == sorted(largest_first[:n_keep])
    fault_table.add("odd scores / mask", True)


@pytest.mark.parametrize("kind", SCORES)
def test_sharpness_is_blind_to_what_scores_are_beyond_their_mask(
    narrow: Any, batch: Any, fault_table: Any, kind: str
) -> None:
    """lambda_max is that of ordinary scores with the same signs and mask, of which the Hessian is a matrix here."""
    odd = with_scores(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10)), SCORES[kind]).double()
    torch.manual_seed(3)
    for module in odd.modules():
        if hasattr(module, "parametrizations"):
            nn.init.normal_(module.parametrizations.weight.original)  # type: ignore[union-attr]
    x, y = batch[0].double(), batch[1]
    found = lambda_max(score_hessian(odd, cross_entropy, [(x, y)]), Lanczos(iterations=60)).lambda_max
    weights = [w.detach() for n, w in odd.named_parameters() if n.endswith("original")]
    biases = [b.detach() for n, b in odd.named_parameters() if n.endswith("bias")]
    kept = [bits.double() for bits in masks(odd).values()]
    slopes = [s.detach().sign() for s in scores(odd).values()]
    sizes = [w.numel() for w in weights]

    def loss(shift: Tensor) -> Tensor:
        parts = [p.view_as(w) for p, w in zip(shift.split(sizes), weights, strict=True)]
        first, second = (w * (m + s * p) for w, m, s, p in zip(weights, kept, slopes, parts, strict=True))
        hidden = torch.tanh(x.flatten(1) @ first.T + biases[0])
        return F.cross_entropy(hidden @ second.T + biases[1], y)

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(sum(sizes)).double())
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)
    fault_table.add("odd scores / lambda_max", True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", SCORES)
def test_loss_differences_are_finite_and_keep_to_the_margins(
    narrow: Any, batch: Any, fault_table: Any, kind: str, norm: Any
) -> None:
    model = with_scores(narrow(), SCORES[kind])
    before = {name: s.detach().clone() for name, s in scores(model).items()}
    found = loss_difference(model, cross_entropy, [batch], rho=0.01, steps=3, norm=norm)
    assert math.isfinite(found.mean)
    assert found.mean >= 0
    assert math.isfinite(found.average_case)
    if norm == "linf":  # rounding of a score times 1.01 may put two beside each other that were not
        assert found.flips[0] <= score_margins(model, 0.01 * (1 + 1e-5)).flippable * found.n_scores + 1e-6
    assert all(torch.equal(s, before[name]) for name, s in scores(model).items())
    fault_table.add("odd scores / loss difference", True)


@pytest.mark.parametrize("kind", [kind for kind in SCORES if "zero" in kind])
def test_scores_of_zero_cannot_move(narrow: Any, batch: Any, fault_table: Any, kind: str) -> None:
    """Under |v| <= rho |s| nothing changes: the loss difference is 0, and so is every margin's reach."""
    model = with_scores(narrow(), SCORES[kind])
    found = loss_difference(model, cross_entropy, [batch], rho=0.5, steps=3)
    assert (found.mean, found.average_case, found.flips) == (0.0, 0.0, (0,))
    assert score_margins(model, 0.5).flippable == 0.0
    assert lambda_max(score_hessian(model, cross_entropy, [batch])).lambda_max == pytest.approx(0, abs=1e-12)
    fault_table.add("odd scores / loss difference", True)


@pytest.mark.parametrize("rho", [0.0, 0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", SCORES)
def test_margins_count_what_can_change_places(fault_table: Any, kind: str, rho: float) -> None:
    """By trying every number of swaps, in exact-enough arithmetic."""
    model = with_scores(nn.Sequential(nn.Linear(6, 4)), SCORES[kind], keep=0.4)
    magnitude = np.abs(next(iter(scores(model).values())).detach().numpy().astype(np.longdouble)).ravel()
    mask = naive_mask(next(iter(scores(model).values())), 0.4).ravel()
    kept, dropped = np.sort(magnitude[mask]), np.sort(magnitude[~mask])[::-1]
    swaps = 0
    for m in range(1, min(len(kept), len(dropped)) + 1):
        if kept[m - 1] * max(1 - rho, 0) < dropped[m - 1] * (1 + rho):
            swaps = m
    found = score_margins(model, rho)
    assert found.flippable == 2 * swaps / magnitude.size
    assert all(np.isfinite(layer.threshold) for layer in found.layers.values() if layer.threshold is not None)
    fault_table.add("odd scores / margins", True)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SCORES, 2)))
def test_hamming_of_odd_scores_is_counted_entry_by_entry(fault_table: Any, first: str, second: str) -> None:
    models = [with_scores(nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5)), SCORES[kind]) for kind in (first, second)]
    found = hamming(*map(masks, models))
    pairs = zip(*(scores(model).values() for model in models), strict=True)
    flipped = sum(int((naive_mask(a, 0.3) != naive_mask(b, 0.3)).sum()) for a, b in pairs)
    assert (found.flipped, found.h) == (flipped, flipped / 98)
    assert all(math.isfinite(v) for v in (found.h, found.chance, found.ceiling, found.iou))
    fault_table.add("odd scores / hamming", True)


def test_hamming_of_empty_and_full_masks(fault_table: Any) -> None:
    shape = (3, 5)
    empty, full = {"w": np.zeros(shape, bool)}, {"w": np.ones(shape, bool)}
    assert (hamming(empty, full).h, hamming(empty, full).h_per_kept, hamming(empty, full).iou) == (1.0, None, 0.0)
    assert (hamming(empty, empty).h, hamming(empty, empty).h_over_chance, hamming(empty, empty).iou) == (0.0, None, 1.0)
    assert hamming(full, full).h_over_ceiling is None
    for nothing in ({"w": np.zeros((0, 5), bool)}, {}):
        with pytest.raises(InputError, match="no mask"):
            hamming(nothing, nothing)
    fault_table.add("empty mask / hamming", True)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_keep_rate_that_is_none(narrow: Any, fault_table: Any, keep: float) -> None:
    with pytest.raises(InputError, match="keep = "):
        attach(narrow(), keep)
    fault_table.add("keep rate / attach", True)


def test_a_keep_rate_so_small_that_one_weight_stays(narrow: Any, batch: Any, fault_table: Any) -> None:
    """int((1 - k) n) drops at most n - 1, so that no layer is empty; all metrics are defined."""
    model = attach(narrow(), 1e-9)
    kept = {name: int(bits.sum()) for name, bits in masks(model).items()}
    assert set(kept.values()) == {1}
    assert math.isfinite(lambda_max(score_hessian(model, cross_entropy, [batch])).lambda_max)
    assert math.isfinite(loss_difference(model, cross_entropy, [batch], rho=0.01, steps=2).mean)
    assert score_margins(model, 0.01).flippable <= 2 * len(kept) / sum(b.numel() for b in masks(model).values())
    fault_table.add("keep rate / sharpness", True)


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
@pytest.mark.parametrize("images", ["one", "one class", "all the same"])
def test_batches_of_one_and_of_one_class(
    narrow: Any, batch: Any, fault_table: Any, images: str, batch_norm: Any
) -> None:
    x, y = batch
    x, y = {"one": (x[:1], y[:1]), "one class": (x, y[:1].expand(8)), "all the same": (x[:1].expand(8, -1, -1, -1), y)}[
        images
    ]
    model = with_scores(narrow(), lambda s: s)
    found = lambda_max(score_hessian(model, cross_entropy, [(x, y)], batch_norm=batch_norm))
    assert math.isfinite(found.lambda_max)
    difference = loss_difference(model, cross_entropy, [(x, y)], rho=0.01, steps=2, batch_norm=batch_norm)
    assert math.isfinite(difference.mean)
    assert difference.mean >= 0
    fault_table.add("odd batch / sharpness", True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("entry", ["conv1.scores", "conv1.weight", "bn1.running_var", "linear.bias"])
def test_values_that_are_not_finite_in_a_checkpoint(
    attempt: Callable[..., Outcome], narrow: Any, tmp_path: Path, entry: str, value: float
) -> None:
    """Scores are refused when read, other tensors found by verify, and a loss of NaN is no measurement."""
    path = tmp_path / "prune-best.safetensors"
    save_checkpoint(path, attach(narrow(), 0.3), HEADER)
    tensors, header = load_tensors(path)
    tensors[entry].view(-1)[1] = value
    save_tensors(path, tensors, header)
    found = attempt("not finite / verify", ["verify", path, "--json", "-"], statuses=(0, 1, 2))
    measured = attempt("not finite / sharpness", ["sharpness", path, *MEASURE, "--json", "-"])
    if entry.endswith("scores"):
        assert (found.status, measured.status) == (2, 2)
        assert "conv1.scores hold NaN or infinity" in found.stderr
        return
    assert found.status == 1
    (finding,) = [r for r in found.records() if "1 values are NaN or infinite" in r["message"]]
    assert finding["layer"].startswith(entry.partition(".")[0])
    if math.isnan(value):
        assert measured.status == 2
        assert "the loss is nan" in measured.stderr


HEADER = {
    "network": {
        "name": "tiny",
        "classes": 10,
        "width": 4,
        "input_size": 8,
        "input_channels": 1,
        "norm_affine": True,
    },
    "dataset": "prototypes",
    "method": "hydra",
    "keep": 0.3,
    "seed": 0,
    "stage": "prune",
    "epoch": 3,
}
MEASURE = [
    "--images",
    8,
    "--batch-size",
    8,
    "--iterations",
    2,
    "--rho",
    0.01,
    "--steps",
    2,
    "--objective",
    "clean",
    "--quiet",
]


@pytest.mark.parametrize("kind", SCORES)
def test_odd_scores_through_the_commands(
    attempt: Callable[..., Outcome], narrow: Any, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "prune-epoch-003.safetensors"
    model = with_scores(narrow(), SCORES[kind])
    save_checkpoint(path, model, HEADER)
    (record,) = attempt("odd scores / inspect", ["inspect", path, "--quiet", "--json", "-"]).records()
    expected = {name: int(naive_mask(s, 0.3).sum()) for name, s in scores(model).items()}
    assert {row["layer"].replace("weight", "scores"): row["kept"] for row in record["layers"]} == expected
    (measured,) = attempt("odd scores / sharpness", ["sharpness", path, *MEASURE, "--json", "-"]).records()
    assert measured["loss_difference"]["0.01"]["mean"] >= 0
    assert attempt("odd scores / verify", ["verify", path, "--quiet", "--json", "-"]).status == 0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_tools_checkpoints_in_other_precision(
    narrow: Any, batch: Any, tmp_path: Path, fault_table: Any, dtype: torch.dtype, suffix: str
) -> None:
    """Their mask is that of the numbers in the file, and the model computes in float32."""
    model = with_scores(narrow(), lambda s: s)
    state = {k.replace("parametrizations.weight.original", "weight"): t for k, t in model.state_dict().items()}
    state = {k.replace("parametrizations.weight.0.scores", "popup_scores"): t for k, t in state.items()}
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
    path = tmp_path / f"checkpoint{suffix}"
    path.write_bytes(mutate.saved(state) if suffix == ".pt" else mutate.foreign_safetensors(state))
    found = read(path, network="tiny", keep=0.3).as_checkpoint().model
    for name, bits in masks(found).items():
        assert np.array_equal(bits.numpy(), naive_mask(state[name.replace("weight", "popup_scores")].double(), 0.3))
    assert {t.dtype for t in found.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert math.isfinite(lambda_max(score_hessian(found, cross_entropy, [batch])).lambda_max)
    fault_table.add("other precision / sharpness", True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_our_checkpoints_in_other_precision(
    narrow: Any, batch: Any, tmp_path: Path, fault_table: Any, dtype: torch.dtype
) -> None:
    path = tmp_path / "prune-best.safetensors"
    model = with_scores(narrow(), lambda s: s).to(dtype)
    save_checkpoint(path, model, HEADER)
    found = load_checkpoint(path).model
    for name, values in scores(model).items():
        expected = naive_mask(values.detach().float(), 0.3)
        assert np.array_equal(masks(found)[name.replace("scores", "weight")].numpy(), expected)
    assert math.isfinite(lambda_max(score_hessian(found, cross_entropy, [batch])).lambda_max)
    fault_table.add("other precision / sharpness", True)


def test_scores_too_large_for_float32_are_refused(narrow: Any, tmp_path: Path, fault_table: Any) -> None:
    model = with_scores(narrow(), lambda s: s).double()
    with torch.no_grad():
        scores(model)["conv1.scores"][0, 0, 0, 0] = 1e300
    save_checkpoint(tmp_path / "ours.safetensors", model, HEADER)
    with pytest.raises(InputError, match=r"conv1\.scores hold NaN or infinity"):
        load_checkpoint(tmp_path / "ours.safetensors")
    fault_table.add("other precision / load", True)


def test_a_fixed_mask_of_nothing_is_a_violation(attempt: Callable[..., Outcome], narrow: Any, tmp_path: Path) -> None:
    model = attach_masks(narrow(), lambda name, layer: FixedMask(torch.zeros_like(layer.weight)))  # type: ignore[arg-type]
    path = tmp_path / "finetune-best.safetensors"
    save_checkpoint(path, model, HEADER | {"stage": "finetune"})
    found = attempt("empty mask / verify", ["verify", path, "--quiet", "--json", "-"], statuses=(1,))
    assert sum("dead: no weight is kept" in record["message"] for record in found.records()) == 3
    for call in (["inspect", path], ["evaluate", path, "--attack", "none"], ["hamming", path, path]):
        assert attempt(f"empty mask / {call[0]}", [*call, "--quiet", "--json", "-"]).status == 0
