"""Keep rates that are there before the search: ERK's and those from spectra, and HYDRA's search with them."""

import math

import numpy as np
import pytest
import torch

from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.layers import score_masks
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.methods.rates import erk_counts, spectral_counts, spectrum, tail_exponent
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.seeds import generator
from s2ap_core.training.stages import Stages
from s2ap_diag.verification import verify
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network")

KEEPS = (0.9, 0.5, 0.2, 0.1, 0.01)


def budget(total: int, keep: float) -> int:
    return total - int((1 - keep) * total)


@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0])
def test_the_tail_exponent_is_that_of_a_pareto_sample(exponent):
    # Density (a - 1) x^-a from 1 on; its upper half has the same exponent, known to a / sqrt(k).
    draws = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample = draws.pow(-1 / (exponent - 1)).sort(descending=True).values
    assert tail_exponent(sample) == pytest.approx(exponent, rel=4 / math.sqrt(20_000))
    assert tail_exponent(1000 * sample) == pytest.approx(tail_exponent(sample))  # the scale says nothing


def test_the_tail_exponent_of_four_by_hand():
    # k = 2 of 8, 4, 2, 1: log(8 / 2) + log(4 / 2) = 3 log 2.
    assert tail_exponent(torch.tensor([8.0, 4.0, 2.0, 1.0])) == pytest.approx(1 + 2 / (3 * math.log(2)))
    assert not math.isfinite(tail_exponent(torch.ones(6)))
    assert math.isnan(tail_exponent(torch.ones(1)))


def test_a_rank_that_is_not_full_is_no_heavy_tail():
    """A layer with rows of zeros has the exponent of the rows that are left; one of rank 1 counts as the mean."""
    rng = torch.Generator().manual_seed(4)
    full = {name: torch.randn(32, 32, generator=rng) for name in "abc"}
    rank = {**full, "c": full["c"].clone()}
    rank["c"][:20] = 0
    assert tail_exponent(spectrum(rank["c"])) == pytest.approx(tail_exponent(spectrum(full["c"][20:])), rel=1e-9)
    rank["c"] = full["c"][:, :1] * full["a"][:1]  # of rank 1, but for rounding to float32
    assert math.isnan(tail_exponent(spectrum(rank["c"])))
    assert math.isnan(tail_exponent(torch.zeros(6)))
    counts = spectral_counts(rank, 0.5, 0.2)
    assert min(counts["a"], counts["b"]) < counts["c"] < max(counts["a"], counts["b"])


def test_the_spectrum_is_of_the_correlation_of_rows():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    matrix = weight.double().numpy().reshape(5, 12)
    assert np.allclose(spectrum(weight), np.linalg.eigvalsh(matrix @ matrix.T)[::-1])


def with_spectra(exponents: list[float], size: int) -> dict[str, torch.Tensor]:
    """Square weights whose spectra have exactly these tail exponents: eigenvalues geometric from the middle on."""
    weights, rng = {}, torch.Generator().manual_seed(3)
    for index, exponent in enumerate(exponents):
        k = size // 2
        # log(x_i / x_(k+1)) = c (k + 1 - i), whose mean is c (k + 1) / 2 = 1 / (exponent - 1).
        steps = torch.arange(size, dtype=torch.float64).flip(0) * 2 / ((k + 1) * (exponent - 1))
        left, right = (
            torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))[0] for _ in range(2)
        )
        weights[f"layer{index}"] = left @ (steps / 2).exp().diag() @ right
    return weights


def test_sparsities_are_the_linear_map_of_the_exponents():
    exponents, keep, tau = [2.0, 3.0, 5.0, 2.5], 0.5, 0.2
    weights = with_spectra(exponents, 20)
    assert [tail_exponent(spectrum(w)) for w in weights.values()] == pytest.approx(exponents)
    ratios = [1 - tau + 2 * tau * (a - 2) / 3 for a in exponents]
    factor = (1 - keep) * 4 / sum(ratios)
    kept = [count / 400 for count in spectral_counts(weights, keep, tau).values()]
    assert kept == pytest.approx([1 - factor * ratio for ratio in ratios], abs=1 / 400)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("tau", [0.05, 0.2, 0.9])
def test_no_layer_falls_below_a_tenth_of_the_budget_and_the_budget_is_exact(keep, tau):
    weights = {**with_spectra([2.0, 3.0], 30), **{f"b{n}": w for n, w in with_spectra([6.0, 2.2], 15).items()}}
    counts = spectral_counts(weights, keep, tau)
    assert sum(counts.values()) == budget(2 * 900 + 2 * 225, keep)
    least = min(counts[name] / weights[name].numel() for name in weights)
    assert least >= 0.1 * keep - 1 / 225
    # Where tau had to be lowered, the sparsest layer is at the floor.
    ratio = torch.tensor([1 - tau, 1 - tau + 0.5 * tau, 1 + tau, 1 - tau + 0.1 * tau])
    asked = 1 - (1 - keep) * (1 + tau) * 2250 / float((ratio * torch.tensor([900, 900, 225, 225])).sum())
    assert least == pytest.approx(max(asked, 0.1 * keep), abs=1 / 225)


def test_layers_without_a_tail_count_as_the_mean_of_the_others():
    weights = with_spectra([2.0, 4.0], 20) | {"eye": torch.eye(20)}
    counts = spectral_counts(weights, 0.5, 0.2)
    assert counts["layer0"] > counts["eye"] > counts["layer1"]
    assert counts["eye"] == pytest.approx(200, abs=1)
    assert spectral_counts({"a": torch.eye(4), "b": torch.eye(6)}, 0.5, 0.2) == {"a": 8, "b": 18}


@pytest.mark.parametrize("keep", KEEPS)
def test_erk_is_proportional_to_the_dimensions_over_their_product(keep):
    shapes = [(16, 4), (48, 16), (16, 16), (64, 16), (16, 64), (8, 8, 3, 3)]
    weights = {str(shape): torch.ones(shape) for shape in shapes}
    counts = erk_counts(weights, keep)
    assert sum(counts.values()) == budget(sum(w.numel() for w in weights.values()), keep)
    # By naming the full layers until the rest fits, as the paper's algorithm does.
    full: set[tuple[int, ...]] = set()
    while True:
        open_ = [s for s in shapes if s not in full]
        left = budget(sum(map(math.prod, shapes)), keep) - sum(math.prod(s) for s in full)
        factor = left / sum(sum(s) for s in open_)
        over = {s for s in open_ if factor * sum(s) > math.prod(s)}
        if not over:
            break
        full |= over
    for shape in shapes:
        expected = math.prod(shape) if shape in full else max(factor * sum(shape), 1)
        assert abs(counts[str(shape)] - expected) <= 1.01


@pytest.mark.parametrize("name", ["hydra-erk", "hydra-spectral"])
def test_hydra_searches_at_the_rates_of_the_dense_weights(name, tmp_path, new_run, data):
    s2ap = {"name": "s2ap", "gamma": 0.2, "warmup": 1}
    run = new_run(tmp_path / "run", method={"name": name, "keep": 0.2}, minimizer=s2ap, prune={"batch_size": 16})
    Stages(run, data).all()
    dense = {
        layer.removesuffix(".weight"): tensor
        for layer, tensor in load_tensors(run.result("pretrain"))[0].items()
        if tensor.dim() > 1
    }
    expected = erk_counts(dense, 0.2) if name == "hydra-erk" else spectral_counts(dense, 0.2, 0.2)
    assert len(set(expected.values())) > 1
    every = [masks_in(run.masks(epoch)) for epoch in range(run.config.prune.epochs + 1)]
    for found in every:
        assert {layer.removesuffix(".weight"): int(bits.sum()) for layer, bits in found.items()} == expected
    assert any(not np.array_equal(bits, every[-1][layer]) for layer, bits in every[0].items())
    kept = {layer: mask.n_keep for layer, mask in score_masks(load_checkpoint(run.result("prune")).model).items()}
    assert kept == expected
    for stage in ("prune", "finetune"):
        assert [f for f in verify(load_checkpoint(run.result(stage))) if f.kind == "violation"] == []


def test_hydras_scores_are_the_same_at_all_rates(narrow):
    found = []
    for name in ("hydra", "hydra-erk", "hydra-spectral"):
        model = narrow()
        build_method(MethodSettings(name=name, keep=0.2)).attach(model, generator("cpu", 0))
        found.append([mask.scores.detach() for mask in score_masks(model).values()])
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_a_tau_spreads_the_rates(narrow):
    spreads = []
    for tau in (0.01, 0.4):
        model = narrow(width=8)
        build_method(MethodSettings(name="hydra-spectral", keep=0.5, tau=tau)).attach(model, generator("cpu", 0))
        rates = [mask.keep for mask in score_masks(model).values()]
        spreads.append(max(rates) - min(rates))
    assert spreads[0] < spreads[1] / 4
