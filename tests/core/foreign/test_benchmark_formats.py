"""The checkpoints of AdversarialPruningBenchmark: each tool's layout, and its forward pass written down by hand.

``pytest -rP`` on this file lists the largest logit difference of each format.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s2ap_core.data import load
from s2ap_core.errors import InputError
from s2ap_core.foreign.formats import read_state
from s2ap_core.foreign.network import foreign_checkpoint, foreign_masks
from s2ap_core.masks.masking import attach, masks
from s2ap_core.models import build
from s2ap_core.runs.checkpoints import Checkpoint, save_checkpoint
from s2ap_diag.commands.export import evaluation_of
from tests.diag.commands.running import invoke

State = dict[str, Tensor]
WIDTH, KEEP = 4, 0.3
CIFAR10 = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


# --- the networks, as published: names and shapes of their tensors, and what they compute ---


def norm_state(name: str, channels: int, affine: bool = True) -> State:
    state = {f"{name}.running_mean": torch.randn(channels) / 5, f"{name}.running_var": 0.5 + torch.rand(channels)}
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state | (
        {f"{name}.weight": 0.5 + torch.rand(channels), f"{name}.bias": torch.randn(channels) / 5} if affine else {}
    )


def conv_state(name: str, out: int, channels: int, size: int) -> State:
    return {f"{name}.weight": torch.randn(out, channels, size, size) * (2 / (channels * size**2)) ** 0.5}


def resnet_state(affine: bool = True) -> State:
    torch.manual_seed(0)
    state = conv_state("conv1", WIDTH, 3, 3) | norm_state("bn1", WIDTH, affine)
    before = WIDTH
    for stage, channels in enumerate((WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            for i, given in ((1, before), (2, channels)):
                state |= conv_state(f"{name}.conv{i}", channels, given, 3) | norm_state(
                    f"{name}.bn{i}", channels, affine
                )
            if before != channels:
                state |= conv_state(f"{name}.shortcut.0", channels, before, 1)
                state |= norm_state(f"{name}.shortcut.1", channels, affine)
            before = channels
    return state | {"linear.weight": torch.randn(10, 8 * WIDTH) / 4, "linear.bias": torch.randn(10)}


def preact_state() -> State:
    torch.manual_seed(0)
    state, before = conv_state("conv1", WIDTH, 3, 3), WIDTH
    for stage, channels in enumerate((WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            for i, given in ((1, before), (2, channels)):
                state |= norm_state(f"{name}.bn{i}", given) | conv_state(f"{name}.conv{i}", channels, given, 3)
            if before != channels:
                state |= conv_state(f"{name}.shortcut.0", channels, before, 1)
            before = channels
    state |= norm_state("bn", 8 * WIDTH)
    return state | {"linear.weight": torch.randn(10, 8 * WIDTH) / 4, "linear.bias": torch.randn(10)}


STAGES = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)


def vgg_state(bias: bool, affine: bool = True) -> State:
    torch.manual_seed(0)
    state: State = {}
    index, before = 0, 3
    for multiple in STAGES:
        if multiple:
            state |= conv_state(f"features.{index}", multiple * WIDTH, before, 3)
            state |= {f"features.{index}.bias": torch.randn(multiple * WIDTH) / 5} if bias else {}
            state |= norm_state(f"features.{index + 1}", multiple * WIDTH, affine)
            before = multiple * WIDTH
        index += 3 if multiple else 1
    return state | {"classifier.weight": torch.randn(10, 8 * WIDTH), "classifier.bias": torch.randn(10)}


def renamed(state: State, **parts: str) -> State:
    """Rename whole parts, ``a__0="b"`` for ``a.0``."""
    names = {part.replace("__", "."): name for part, name in parts.items()}
    new: State = {}
    for key, tensor in state.items():
        part = next((p for p in names if key.startswith(f"{p}.")), "")
        new[names[part] + key.removeprefix(part) if part else key] = tensor
    return new


def mad_vgg_state() -> State:
    return renamed(vgg_state(False), features="feature")


def li20_vgg_state() -> State:
    state = mad_vgg_state()
    wide = 8 * WIDTH
    last = {f"classifier.3.{part}": state.pop(f"classifier.{part}") for part in ("weight", "bias")}
    state |= {"classifier.0.weight": torch.randn(wide, wide) / 4, "classifier.0.bias": torch.randn(wide) / 5}
    return state | norm_state("classifier.1", wide) | last


def pwoa_vgg_state() -> State:
    torch.manual_seed(0)
    state: State = {}
    before = 3
    for stage, (multiple, convolutions) in enumerate(((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)), 1):
        for place in range(convolutions):
            name = f"layer{stage}.{place}"
            state |= conv_state(f"{name}.0", multiple * WIDTH, before, 3) | norm_state(f"{name}.1", multiple * WIDTH)
            state[f"{name}.0.bias"] = torch.randn(multiple * WIDTH) / 5
            before = multiple * WIDTH
    for name, given, units in (("layer6.0", 32, 4), ("layer7.0", 4, 4)):
        state[f"{name}.weight"] = torch.randn(units * WIDTH, given * WIDTH) / (given * WIDTH / 2) ** 0.5
        state[f"{name}.bias"] = torch.randn(units * WIDTH) / 5
    return state | {"layer8.weight": torch.randn(10, 4 * WIDTH) / 2, "layer8.bias": torch.randn(10)}


def normed(s: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s.get(f"{name}.weight"), s.get(f"{name}.bias")
    )


def resnet(s: State, x: Tensor) -> Tensor:
    x = F.relu(normed(s, "bn1", F.conv2d(x, s["conv1.weight"], padding=1)))
    for stage in range(1, 5):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(normed(s, f"{name}.bn1", F.conv2d(x, s[f"{name}.conv1.weight"], stride=stride, padding=1)))
            out = normed(s, f"{name}.bn2", F.conv2d(out, s[f"{name}.conv2.weight"], padding=1))
            if f"{name}.shortcut.0.weight" in s:
                x = normed(s, f"{name}.shortcut.1", F.conv2d(x, s[f"{name}.shortcut.0.weight"], stride=stride))
            x = F.relu(out + x)
    return F.linear(F.avg_pool2d(x, 4).flatten(1), s["linear.weight"], s["linear.bias"])


def preact(s: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, s["conv1.weight"], padding=1)
    for stage in range(1, 5):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(normed(s, f"{name}.bn1", x))
            if f"{name}.shortcut.0.weight" in s:
                x = F.conv2d(out, s[f"{name}.shortcut.0.weight"], stride=stride)
            out = F.conv2d(out, s[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = F.conv2d(F.relu(normed(s, f"{name}.bn2", out)), s[f"{name}.conv2.weight"], padding=1) + x
    x = F.relu(normed(s, "bn", x))
    return F.linear(x.mean((2, 3)), s["linear.weight"], s["linear.bias"])


def vgg(s: State, x: Tensor) -> Tensor:
    index = 0
    for multiple in STAGES:
        if multiple:
            x = F.conv2d(x, s[f"features.{index}.weight"], s.get(f"features.{index}.bias"), padding=1)
            x = F.relu(normed(s, f"features.{index + 1}", x))
        else:
            x = F.max_pool2d(x, 2, 2)
        index += 3 if multiple else 1
    return F.linear(x.flatten(1), s["classifier.weight"], s["classifier.bias"])


def feature_maps(s: State, x: Tensor) -> Tensor:
    """MAD's and Li20's convolutions; there is no pool behind the last stage."""
    index = 0
    for multiple in STAGES[:-1]:
        if multiple:
            x = F.relu(normed(s, f"feature.{index + 1}", F.conv2d(x, s[f"feature.{index}.weight"], padding=1)))
        else:
            x = F.max_pool2d(x, 2, 2)
        index += 3 if multiple else 1
    return x


def mad_vgg(s: State, x: Tensor) -> Tensor:
    return F.linear(F.avg_pool2d(feature_maps(s, x), 2).flatten(1), s["classifier.weight"], s["classifier.bias"])


def li20_vgg(s: State, x: Tensor) -> Tensor:
    x = F.avg_pool2d(feature_maps(s, x), 2).flatten(1)
    x = F.relu(normed(s, "classifier.1", F.linear(x, s["classifier.0.weight"], s["classifier.0.bias"])))
    return F.linear(x, s["classifier.3.weight"], s["classifier.3.bias"])


def pwoa_vgg(s: State, x: Tensor) -> Tensor:
    for stage, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for place in range(convolutions):
            name = f"layer{stage}.{place}"
            x = F.conv2d(x, s[f"{name}.0.weight"], s[f"{name}.0.bias"], padding=1)
            x = F.relu(normed(s, f"{name}.1", x))
        x = F.max_pool2d(x, 2, 2) if stage < 5 else F.adaptive_avg_pool2d(x, (2, 2))
    x = F.relu(F.linear(x.flatten(1), s["layer6.0.weight"], s["layer6.0.bias"]))
    x = F.relu(F.linear(x, s["layer7.0.weight"], s["layer7.0.bias"]))
    return F.linear(x, s["layer8.weight"], s["layer8.bias"])


def normalized(x: Tensor, numbers: tuple[list[float], list[float]]) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in numbers)
    return (x - mean) / std


# --- how each tool's layers are laid out: what is written, and the weights that its forward pass takes ---


def layers(state: State) -> list[str]:
    return [name.removesuffix(".weight") for name, t in state.items() if name.endswith(".weight") and t.ndim in (2, 4)]


def dropped(values: Tensor, k: float) -> Tensor:
    """HYDRA's, HARP's and RST's selection: sort the magnitudes, drop the first int((1 - k) n)."""
    mask = torch.ones(values.numel(), dtype=torch.bool)
    mask[values.abs().flatten().sort().indices[: int((1 - k) * values.numel())]] = False
    return mask.view(values.shape)


def random_mask(shape: torch.Size) -> Tensor:
    return torch.rand(shape) < KEEP


def hydra(state: State) -> tuple[State, State]:
    scores = {layer: torch.randn_like(state[f"{layer}.weight"]) for layer in layers(state)}
    used = {f"{n}.weight": state[f"{n}.weight"] * dropped(s, KEEP) for n, s in scores.items()}
    return state | {f"{n}.popup_scores": s for n, s in scores.items()}, state | used


def harp(state: State) -> tuple[State, State]:
    written, _ = hydra(state)
    used = dict(state)
    for i, layer in enumerate(layers(state)):
        k_score = torch.tensor(0.3 * i - 3)
        written[f"{layer}.k_score"] = k_score
        k = 0.1 * KEEP + (1 - 0.1 * KEEP) * torch.sigmoid(k_score.double())
        used[f"{layer}.weight"] = state[f"{layer}.weight"] * dropped(written[f"{layer}.popup_scores"], float(k))
    return written, used


def dense(state: State) -> tuple[State, State]:
    """PwoA, RADMM, Li20 and what the others export: the pruned weights are zero."""
    used = state | {
        f"{n}.weight": state[f"{n}.weight"] * random_mask(state[f"{n}.weight"].shape) for n in layers(state)
    }
    return used, used


def flyingbird(state: State) -> tuple[State, State]:
    found = {f"{n}.weight_mask": random_mask(state[f"{n}.weight"].shape).float() for n in layers(state)}
    used = {f"{n}.weight": state[f"{n}.weight"] * found[f"{n}.weight_mask"] for n in layers(state)}
    return state | found, state | used


def torch_prune(state: State) -> tuple[State, State]:
    written, used = flyingbird(state)
    for layer in layers(state):
        written[f"{layer}.weight_orig"] = written.pop(f"{layer}.weight")
    return written, used


def twinrep(state: State) -> tuple[State, State]:
    written, used = dict(state), dict(state)
    for n in layers(state):
        written[f"{n}.aux_weight"] = torch.randn_like(state[f"{n}.weight"])
        written[f"{n}.mask"] = random_mask(state[f"{n}.weight"].shape).float()
        used[f"{n}.weight"] = state[f"{n}.weight"] * written[f"{n}.aux_weight"] * written[f"{n}.mask"]
    return written, used


def twinrep_filters(state: State) -> tuple[State, State]:
    written, used = dict(state), dict(state)
    for n in layers(state):
        weight = state[f"{n}.weight"]
        aux = torch.randn(len(weight), len(weight)) / len(weight) ** 0.5
        mask = (torch.rand(len(weight)) < 0.6).float().view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).clone()
        written |= {f"{n}.aux_weight": aux, f"{n}.mask": mask}
        used[f"{n}.weight"] = (aux @ weight.flatten(1)).view(weight.shape) * mask
    return written, used


def mad(state: State) -> tuple[State, State]:
    written, _ = dense(state)
    used = dict(written)
    for n in layers(state):
        for part in ("weight", "bias"):
            if f"{n}.{part}" in written:
                written[f"{n}.mask_{part}"] = torch.randn_like(written[f"{n}.{part}"])
                used[f"{n}.{part}"] = written[f"{n}.{part}"] * torch.log1p(written[f"{n}.mask_{part}"].exp())
    return written, used


def li20_vgg_file(state: State) -> tuple[State, State]:
    """The parts are held twice, by themselves and in a sequence with the pool between them."""
    written, used = dense(state)
    again = renamed(written, feature="model.0", classifier="model.3")
    return written | again, used


def rst(state: State, head: str = "linear", theirs: str = "fc") -> tuple[State, State]:
    """A 1x1 convolution without bias is the last layer; normalisation layers have no parameters."""
    scores = {layer: torch.randn_like(state[f"{layer}.weight"]) for layer in layers(state)}
    used = state | {f"{n}.weight": state[f"{n}.weight"] * dropped(s, KEEP) for n, s in scores.items()}
    written = state | {f"{n}.scores": s for n, s in scores.items()}
    for part in ("weight", "scores"):
        written[f"{theirs}.{part}"] = written.pop(f"{head}.{part}")[..., None, None]
    del written[f"{head}.bias"]
    return written, used | {f"{head}.bias": torch.zeros(10)}


def rst_vgg(state: State) -> tuple[State, State]:
    return rst(state, "classifier", "classifier")


Laid = Callable[[State], tuple[State, State]]
NET = lambda state: {"net": state, "acc": 80.0, "epoch": 3}  # noqa: E731
DICT = lambda state: {"state_dict": state, "epoch": 3}  # noqa: E731
PLAIN = lambda state: state  # noqa: E731
MAD = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
SVHN = ([0.43090966, 0.4302428, 0.44634357], [0.19759192, 0.20029082, 0.19811132])
PREFIXED = lambda state: DICT({f"model.{name}": t for name, t in state.items()})  # noqa: E731
WITH_NORM = lambda state: DICT(  # noqa: E731
    state | {"normalize.mean": torch.tensor(SVHN[0]), "normalize.std": torch.tensor(SVHN[1])}
)

FORMATS: dict[str, tuple[Callable[[], State], Callable[[State, Tensor], Tensor], Laid, Any, Any, dict[str, Any]]] = {
    "HARP": (resnet_state, resnet, harp, DICT, None, {"keep": KEEP}),
    "HYDRA": (resnet_state, resnet, hydra, DICT, None, {"keep": KEEP}),
    "HYDRA, exported": (resnet_state, resnet, dense, DICT, None, {}),
    "PwoA": (resnet_state, resnet, dense, PLAIN, None, {}),
    "RADMM": (resnet_state, resnet, dense, NET, None, {}),
    "TwinRep": (resnet_state, resnet, twinrep, DICT, None, {}),
    "TwinRep, filters": (resnet_state, resnet, twinrep_filters, DICT, None, {}),
    "TwinRep, exported": (resnet_state, resnet, dense, PLAIN, None, {}),
    "MAD": (resnet_state, resnet, mad, NET, MAD, {}),
    "MAD, SVHN": (resnet_state, resnet, mad, NET, SVHN, {"dataset": "svhn"}),
    "Li20": (resnet_state, resnet, dense, PREFIXED, None, {}),
    "RST": (lambda: resnet_state(affine=False), resnet, rst, DICT, None, {"keep": KEEP}),
    "RobustBird": (preact_state, preact, dense, DICT, CIFAR10, {}),
    "RobustBird, torch.nn.utils.prune": (preact_state, preact, torch_prune, DICT, CIFAR10, {}),
    "FlyingBird": (preact_state, preact, flyingbird, DICT, CIFAR10, {}),
    "FlyingBird, SVHN": (preact_state, preact, flyingbird, WITH_NORM, SVHN, {}),
    "RADMM, VGG": (lambda: vgg_state(True), vgg, dense, DICT, None, {}),
    "TwinRep, VGG": (lambda: vgg_state(False), vgg, twinrep, DICT, None, {}),
    "FlyingBird, VGG": (lambda: vgg_state(True), vgg, flyingbird, DICT, CIFAR10, {}),
    "MAD, VGG": (mad_vgg_state, mad_vgg, mad, NET, MAD, {}),
    "MAD, VGG, SVHN": (mad_vgg_state, mad_vgg, mad, NET, SVHN, {"dataset": "svhn"}),
    "Li20, VGG": (li20_vgg_state, li20_vgg, li20_vgg_file, PLAIN, None, {}),
    "PwoA, VGG": (pwoa_vgg_state, pwoa_vgg, dense, PLAIN, None, {}),
    "RST, VGG": (lambda: vgg_state(False, affine=False), vgg, rst_vgg, DICT, None, {"keep": KEEP}),
}

NETWORKS = {resnet: "resnet18", preact: "preact_resnet18", pwoa_vgg: "vgg16_bn"}
"""What reads each forward pass; the other VGGs are ``vgg16_linear``."""

NAMES = {
    mad_vgg: {"feature": "features"},
    li20_vgg: {"feature": "features", "classifier__0": "hidden.0", "classifier__3": "classifier"},
    pwoa_vgg: {"layer6__0": "classifier.0", "layer7__0": "classifier.2", "layer8": "classifier.4"}
    | {
        f"layer{stage}__{place}__0": f"features.{i}"
        for (stage, place), i in zip(
            [(1, 0), (1, 1), (2, 0), (2, 1)] + [(s, p) for s in (3, 4, 5) for p in (0, 1, 2)],
            (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
            strict=True,
        )
    },
}
"""Our names of the layers where theirs are others."""


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_published_forward_pass(name: str, tmp_path: Path) -> None:
    make, forward, lay, envelope, numbers, options = FORMATS[name]
    written, used = lay(make())
    path = tmp_path / f"{name.replace(', ', '_')}_Author2020Word_CIFAR10_US_90.pth.tar"
    torch.save(envelope(written), path)
    found = foreign_checkpoint(read_state(path), **options)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = forward(used, x if numbers is None else normalized(x, numbers))
    difference = float((found.model(x) - expected).abs().max().detach())
    print(f"{name:34} largest logit difference {difference:.1e}, logits up to {float(expected.abs().max()):.2g}")
    assert difference < 1e-5 * max(1.0, float(expected.abs().max()))
    assert float(expected.std()) > 0.1
    named = renamed(used, **NAMES.get(forward, {}))
    assert masks(found.model).keys() == {f"{layer}.weight" for layer in layers(named)}
    for layer, mask in masks(found.model).items():
        assert torch.equal(mask, named[layer] != 0), layer
    kept, header = foreign_masks(read_state(path), keep=options.get("keep"))
    assert all(torch.equal(kept[layer], mask) for layer, mask in masks(found.model).items())
    assert header["network"]["name"] == NETWORKS.get(forward, "vgg16_linear")


@pytest.mark.parametrize(("lay", "part"), [(twinrep, "mask"), (mad, "mask_weight"), (flyingbird, "weight_mask")])
def test_a_part_that_does_not_fit_is_named(lay: Laid, part: str, tmp_path: Path) -> None:
    written, _ = lay(resnet_state())
    name = f"layer2.0.conv1.{part}"
    wrong = [written | {name: torch.zeros(3)}]
    if part != "mask_weight":
        wrong.append(written | {name: written[name] + 0.5})
    if lay is twinrep:
        wrong += [{k: t for k, t in written.items() if k != name}, written | {"conv1.aux_weight": torch.zeros(2)}]
    for state in wrong:
        path = tmp_path / "a.pt"
        torch.save(state, path)
        with pytest.raises(InputError) as caught:
            read_state(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert part in str(caught.value) or "aux_weight" in str(caught.value)


# --- and back ---

REFERENCE = json.loads((Path(__file__).parents[2] / "reference" / "state_dicts.json").read_text())
DESCRIBED = {
    "name": "resnet18",
    "classes": 10,
    "width": None,
    "input_size": 32,
    "input_channels": 3,
    "norm_affine": True,
}
HEADER = {
    "network": DESCRIBED,
    "dataset": "cifar10",
    "method": "hydra",
    "minimizer": "none",
    "keep": 0.1,
    "stage": "prune",
}


def test_export_for_the_benchmark(tmp_path: Path) -> None:
    """Names and shapes are those of the published state dict, no more and no less; logits by the pass written above."""
    torch.manual_seed(0)
    model = attach(build("resnet18"), 0.1).eval()
    save_checkpoint(tmp_path / "prune-best.safetensors", model, HEADER | {"epoch": 1})
    x = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(10) % 2)
    out = tmp_path / "model.pt"
    common = ["export", tmp_path / "prune-best.safetensors", "--for", "apb", "--dataset", tmp_path / "images.npz"]
    result = invoke(*common, "--out", out, "--json", "-")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert record["key"] == "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90"

    held = torch.load(out, weights_only=True)
    assert held.keys() == {"state_dict"}
    shapes = {name: list(t.shape) for name, t in held["state_dict"].items()}
    assert shapes == {k: s for k, s in REFERENCE["hydra/resnet18"].items() if not k.endswith("popup_scores")}
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(resnet(held["state_dict"], images), model(images).detach(), atol=1e-5, rtol=1e-5)
    kept = sum(int((held["state_dict"][name] != 0).sum()) for name in masks(model))
    assert kept == sum(int(mask.sum()) for mask in masks(model).values())
    note = Path(record["entry"]).read_text()
    assert f'"{record["key"]}" : ["your_gdrive_link_id", ".pt"]' in note
    assert "_Clean Accuracy:_ xx.xx" in note

    assert "give one of .pt" in invoke(*common, "--out", tmp_path / "model.safetensors").stderr
    assert not (tmp_path / "model.safetensors").exists()
    for change in ({"width": 8}, {"name": "preact_resnet18"}):
        narrow = DESCRIBED | {"width": 8} | change
        small = attach(build(**narrow), 0.1)  # type: ignore[arg-type]
        save_checkpoint(tmp_path / "prune-best.safetensors", small, HEADER | {"epoch": 1, "network": narrow})
        said = invoke(*common, "--out", tmp_path / "other.pt")
        assert said.exit_code == 2
        assert "the benchmark" in said.stderr
        assert not (tmp_path / "other.pt").exists()


def test_the_entry_has_the_numbers_of_this_checkpoint_on_all_images_alone(tmp_path: Path) -> None:
    about = {"attack": "autoattack", "norm": "Linf", "eps": "8/255", "dataset": "digits", "sha256": "a" * 64}
    images = load("digits")
    n = images.count("test")

    def save(n: int, **change: object) -> None:
        bits = np.arange(n) % 4 > 0
        columns = {name: bits for name in ("clean", "robust", "noise", "zero_gradient")}
        columns |= {name: np.arange(n) for name in ("index", "label")}
        (tmp_path / "evals").mkdir(exist_ok=True)
        np.savez(tmp_path / "evals" / "prune.npz", about=np.array(json.dumps(about | change)), **columns)

    def found(sha256: str | None = "a" * 64, dataset: str | None = None) -> dict[str, object]:
        header = {"stage": "prune", "dataset": "digits", "sha256": sha256}
        checkpoint = Checkpoint(tmp_path / "ckpt" / "prune-epoch-003.safetensors", torch.nn.Identity(), header)
        return evaluation_of(checkpoint, images, dataset)

    assert found() == {}
    save(n)
    assert found()["robust_accuracy"] == (np.arange(n) % 4 > 0).mean()
    assert found(dataset="digits") == found()
    assert (found("b" * 64), found(None), found(dataset="c.npz")) == ({}, {}, {})
    save(16)
    assert found() == {}


def test_the_entry_is_an_output_like_any(tmp_path: Path) -> None:
    (tmp_path / "model.pt.entry.md").mkdir()
    (tmp_path / "a.safetensors").touch()
    said = invoke("export", tmp_path / "a.safetensors", "--for", "apb", "--out", tmp_path / "model.pt")
    assert said.exit_code == 2
    assert f"--out {tmp_path / 'model.pt.entry.md'}: " in said.stderr
    assert not (tmp_path / "model.pt").exists()
