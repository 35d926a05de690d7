"""Which layers are masked and what each keeps, against lists written out and counts by hand, for every method."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.choice import own_keep
from s2ap_core.masks.layers import dense_weights, masked_layers
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.methods import METHODS, build_method
from s2ap_core.methods.base import Attacked
from s2ap_core.runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from s2ap_core.seeds import generator
from s2ap_diag.verification import verify, wrong_counts
from tests.tiny import Tiny

KEPT = {name for name in METHODS if not name.endswith(("-channels", "-units", "-heads"))}
"""Those that count weights; of networks with attention see the tests of their own."""


def started(name: str, model: nn.Module, **settings: Any) -> nn.Module:
    """Masked by a method as a run does it, on two random batches."""
    method = build_method(MethodSettings(name=name, **settings))
    rng = torch.Generator().manual_seed(0)
    images = [torch.rand(8, 1, 8, 8, generator=rng) for _ in range(2)]
    batches = [Attacked(x, x, torch.arange(8)) for x in images]

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    method.start(model.eval(), generator("cpu", 0, "scores"), batches, loss)
    method.cut_to_budget(model)
    return model


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def dropped(numel: int, keep: float) -> int:
    return int((1 - keep) * numel)


@pytest.mark.parametrize("name", sorted(KEPT))
def test_named_layers_keep_their_own_rate_and_the_others_the_budget(name: str, tmp_path: Path) -> None:
    model = started(name, tiny(), keep=0.3, keep_layers={"conv2": 0.65, "lin*": 0.17})
    counts = {n: (b.numel(), int(b.sum())) for n, b in masks(model).items()}
    for layer, keep in (("conv2.weight", 0.65), ("linear.weight", 0.17)):
        numel, kept = counts[layer]
        assert kept == numel - dropped(numel, keep)
    numel, kept = counts["conv1.weight"]
    assert kept == numel - dropped(numel, 0.3)
    # What it is when it is read again, and whether it is what its header says.
    network = {"name": "tiny", "input_channels": 1, "input_size": 8}
    said = {"keep": 0.3, "keep_layers": {"conv2": 0.65, "lin*": 0.17}}
    header = {"network": network, "method": name, "stage": "prune", **said}
    save_checkpoint(tmp_path / "x.safetensors", model, header)
    again = load_checkpoint(tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(masks(again.model).values(), masks(model).values(), strict=True))
    assert not list(wrong_counts(again.path, again.header, masks(again.model)))
    other = Checkpoint(again.path, again.model, {**again.header, "keep_layers": {"conv2": 0.6, "lin*": 0.17}})
    assert [f.layer for f in wrong_counts(other.path, other.header, masks(again.model))] == ["conv2.weight"]


@pytest.fixture(autouse=True)
def _named(tiny_network: None) -> None:
    """Files can name the network."""


@pytest.mark.parametrize("name", ["harp", "magnitude-global", "hydra-erk"])
def test_a_shared_budget_is_of_the_layers_without_a_rate_of_their_own(name: str) -> None:
    model = started(name, tiny(), keep=0.3, keep_layers={"conv2": 0.65})
    bits = masks(model)
    shared = [bits["conv1.weight"], bits["linear.weight"]]
    entries = sum(b.numel() for b in shared)
    assert sum(int(b.sum()) for b in shared) == entries - dropped(entries, 0.3)
    with pytest.raises(InputError, match="keep_layers names every layer"):
        started(name, tiny(), keep=0.3, keep_layers={"*": 0.65})


def test_a_perturbed_rate_of_its_own_is_not_learned() -> None:
    model = started("harp", tiny(), keep=0.3, keep_layers={"conv2": 0.65})
    learned = {name for name, _ in model.named_parameters() if name.endswith("rate")}
    assert {name.partition(".")[0] for name in learned} == {"conv1", "linear"}
    assert set(plain_state_dict(model)) >= {"conv2.keep", "conv2.scores", "conv1.rate"}


@pytest.mark.parametrize("name", sorted(KEPT))
def test_only_and_skip_say_which_layers_are_masked(name: str) -> None:
    model = started(name, tiny(), keep=0.3, only=["conv?", "linear"], skip=["conv1"])
    assert list(masked_layers(model)) == ["conv2", "linear"]
    assert list(dense_weights(model)) == ["conv1.weight"]
    entries = sum(b.numel() for b in masks(model).values())
    kept = sum(int(b.sum()) for b in masks(model).values())
    each = sum(b.numel() - dropped(b.numel(), 0.3) for b in masks(model).values())
    assert kept in (entries - dropped(entries, 0.3), each)


def test_channel_methods_leave_skipped_layers_alone(narrow: Any) -> None:
    model = narrow("resnet18")
    method = build_method(MethodSettings(name="hydra-channels", flops_reduction=1.5, skip=["layer4"]))
    method.image_shape = (1, 8, 8)
    method.attach(model, torch.Generator())
    assert masked_layers(model)
    assert not any(name.startswith("layer4") for name in masked_layers(model))


NAMES = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer10.0.conv1", "attn.in_proj", "attn.out_proj"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer1", NAMES[1:3]),
        ("layer1.*", NAMES[1:3]),
        ("layer*", NAMES[1:4]),
        ("*.conv1", [NAMES[1], NAMES[3]]),
        ("layer1.?.conv2", [NAMES[2]]),
        ("attn", NAMES[4:]),
        ("attn.in_proj", [NAMES[4]]),
        ("*", NAMES),
        ("conv1", []),
    ],
)
def test_a_pattern_stands_for_layers_and_for_all_within_a_module(pattern: str, expected: list[str]) -> None:
    assert [name for name in NAMES if own_keep(name, {pattern: 0.5}) is not None] == expected


def test_the_longest_pattern_counts() -> None:
    rates = {"*": 0.5, "layer1": 0.2, "layer1.0.conv2": 0.9}
    assert [own_keep(name, rates) for name in NAMES] == [0.5, 0.2, 0.9, 0.5, 0.5, 0.5]
    with pytest.raises(InputError, match=r"'layer1' and '\*conv2' disagree on layer1\.0\.conv2"):
        own_keep("layer1.0.conv2", {"layer1": 0.2, "*conv2": 0.3})


@pytest.mark.parametrize("option", ["only", "skip", "keep_layers"])
def test_a_pattern_for_no_layer_is_refused_by_name(option: str) -> None:
    value = {"layre4": 0.5} if option == "keep_layers" else ["layre4"]
    with pytest.raises(InputError, match=f"{option}: 'layre4' stands for no layer .* conv1, conv2, linear"):
        attach(tiny(), 0.5, **{option: value})
    with pytest.raises(InputError, match="leave no layer"):
        attach(tiny(), 0.5, skip=["*"])
    with pytest.raises(InputError, match="keep = 0"):
        attach(tiny(), 0.5, keep_layers={"conv1": 0.0})


class Reads(nn.Module):
    """Words looked up, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def test_embeddings_are_masked_on_request_alone() -> None:
    torch.manual_seed(0)
    model = Reads()
    attach(model, 0.5)
    assert list(masked_layers(model)) == ["head"]
    assert list(dense_weights(model)) == ["words.weight"]
    model = Reads()
    table = model.words.weight.detach().clone()
    attach(model, 0.5, embeddings=True)
    bits = masks(model)["words.weight"]
    assert int(bits.sum()) == 14
    x = torch.tensor([[1, 5, 5]])
    torch.testing.assert_close(model(x), model.head((table * bits)[x].mean(1)))
    model(x).sum().backward()
    gradient = scores(model)["words.scores"].grad
    assert gradient.any(1).tolist() == [False, True, False, False, False, True, False]
    for options in ({"sparse": True}, {"max_norm": 1.0}):
        other = Reads()
        other.words = nn.Embedding(7, 4, **options)
        assert list(masked_layers(attach(other, 0.5, embeddings=True))) == ["head"]
    # Its output channels are the columns: one that keeps no weight is 0, whatever is looked up.
    with torch.no_grad():
        scores(model)["words.scores"][:, 2] = 0
    (note,) = [f for f in verify(Checkpoint(Path("x"), model, {})) if f.layer == "words.weight" and "dead" in f.message]
    assert note.message.startswith("1 of 4 output")
