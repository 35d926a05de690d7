"""Other tools' checkpoints, written here as their documentation lays them out, and read back."""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from s2ap_core import models
from s2ap_core.errors import InputError
from s2ap_core.foreign.formats import read_state
from s2ap_core.foreign.network import foreign_checkpoint, foreign_masks, recognise
from s2ap_core.masks import masking
from s2ap_core.masks.layers import score_masks
from s2ap_core.runs.checkpoints import Checkpoint

REFERENCE = json.loads((Path(__file__).parents[2] / "reference" / "state_dicts.json").read_text())
KEEP = 0.3
State = dict[str, Tensor]


def read_foreign(path: Path, **options: Any) -> Checkpoint:
    return foreign_checkpoint(read_state(path), **options)


def network(**options: Any) -> nn.Module:
    """A narrow ResNet-18 whose normalisation is not the identity."""
    torch.manual_seed(3)
    model = models.build("resnet18", **{"width": 4, "classes": 7, "input_channels": 1, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def layers_of(state: State) -> list[str]:
    return [k.removesuffix(".weight") for k, t in state.items() if k.endswith(".weight") and t.ndim in (2, 4)]


def published_mask(values: Tensor, k: Any) -> Tensor:
    """The selection of HYDRA, HARP and RLTH: sort all magnitudes, drop the first int((1 - k) n).

    HARP's code holds its k in float32, where the count may come out one entry off.
    """
    order = values.abs().flatten().sort().indices
    mask = torch.ones(values.numel(), dtype=torch.bool)
    mask[order[: int((1 - float(k)) * values.numel())]] = False
    return mask.view(values.shape)


def score_state(form: str) -> tuple[State, dict[str, Tensor]]:
    """A state dict in the layout of one tool, and the masks that its own code would select."""
    state = network(norm_affine=form != "rlth").state_dict()
    masks = {}
    generator = torch.Generator().manual_seed(4)
    for i, layer in enumerate(layers_of(state)):
        values = torch.randn(state[f"{layer}.weight"].shape, generator=generator)
        state[f"{layer}.{'scores' if form == 'rlth' else 'popup_scores'}"] = values
        k: Any = KEEP
        if form == "harp":
            k_score = torch.tensor(0.4 * (i - 10))
            state[f"{layer}.k_score"] = k_score
            k = 0.1 * KEEP + (1 - 0.1 * KEEP) * torch.sigmoid(k_score.double())
        masks[f"{layer}.weight"] = published_mask(values, k)
    return state, masks


def envelope(state: State, lr: Any = 0.1) -> dict[str, Any]:
    """The dict that HYDRA's and HARP's training writes."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    held = optimizer.state_dict()
    held["param_groups"][0]["lr"] = lr
    return {
        "epoch": 20,
        "arch": "resnet18",
        "state_dict": state,
        "best_prec1": torch.tensor(44.5),
        "optimizer": held,
    }


def dense_state(form: str) -> tuple[State, dict[str, Tensor]]:
    """What the tools' ``subnet_to_dense`` makes of it: cut at the global rate, HARP's rates left in."""
    state, _ = score_state(form)
    masks = {}
    for layer in layers_of(state):
        masks[f"{layer}.weight"] = published_mask(state.pop(f"{layer}.popup_scores"), KEEP)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * masks[f"{layer}.weight"]
    return state, masks


def pruned_state() -> tuple[State, dict[str, Tensor], nn.Module]:
    """A network pruned with torch's own functions, one bias and one normalisation included."""
    model = network()
    for name in ("conv1", "layer2.0.conv1", "layer4.1.conv2", "linear"):
        prune.l1_unstructured(model.get_submodule(name), "weight", 0.6)
    prune.random_unstructured(model.linear, "bias", 3)
    prune.random_unstructured(model.bn1, "weight", 2)
    buffers = dict(model.named_buffers())
    masks = {
        f"{layer}.weight": buffers[f"{layer}.weight_mask"].bool()
        for layer in ("conv1", "layer2.0.conv1", "layer4.1.conv2", "linear")
    }
    return model.state_dict(), masks, model


def masked_output(state: State, masks: dict[str, Tensor], x: Tensor, **options: Any) -> Tensor:
    """The logits of a plain network whose weights are multiplied with the masks."""
    model = network(**options)
    own = {key: state[key] for key in model.state_dict()}
    model.load_state_dict(own | {key: state[key] * mask for key, mask in masks.items()})
    return model(x)


def assert_masks(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(found[name].dtype == torch.bool and found[name].equal(expected[name]) for name in expected)


def images() -> Tensor:
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def write(path: Path, content: Any, legacy: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(read: Callable[[], object], path: Path) -> str:
    """The message of an InputError: one line that names the file."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# --- each format, as documented ---


@pytest.mark.parametrize("prefix", ["", "module.", "basic_model.", "module.basic_model."])
@pytest.mark.parametrize("form", ["hydra", "harp", "rlth"])
def test_scores_become_the_published_masks(form: str, prefix: str, tmp_path: Path) -> None:
    state, expected = score_state(form)
    if form == "harp":  # the learned rates differ, so a uniform cut would fail the test
        assert len({float(m.float().mean().round(decimals=2)) for m in expected.values()}) > 10
    path = write(tmp_path / "checkpoint.pth.tar", envelope({prefix + k: t for k, t in state.items()}))
    found = read_foreign(path, keep=KEEP, dataset="cifar10")
    assert found.header == {
        "network": {
            "name": "resnet18",
            "classes": 7,
            "width": 4,
            "input_size": None,
            "input_channels": 1,
            "norm_affine": form != "rlth",
        },
        "dataset": "cifar10",
        "method": form,
        "keep": KEEP,
        "keep_is_counted": False,
        "stage": "prune",
        "epoch": 20,
        "format": form,
        "read": f"tensors under state_dict{f', names without {prefix}' if prefix else ''}; masks are the largest "
        f"{'scores' if form == 'rlth' else 'popup_scores'} of each layer",
    }
    assert_masks(masking.masks(found.model), expected)
    assert not found.model.training
    x = images()
    torch.testing.assert_close(found.model(x), masked_output(state, expected, x, norm_affine=form != "rlth"))
    masks, header = foreign_masks(read_state(path), keep=KEEP)
    assert_masks(masks, expected)
    assert header == found.header | {"dataset": None}


def test_harps_rates_stay_learnable_with_their_lower_end(tmp_path: Path) -> None:
    state, _ = score_state("harp")
    found = read_foreign(write(tmp_path / "model_best.pth.tar", envelope(state)), keep=KEEP)
    for layer, mask in score_masks(found.model).items():
        assert mask.rate is not None
        assert mask.rate.requires_grad
        assert mask.rate.equal(state[f"{layer}.k_score"])
        assert mask.keep_min == pytest.approx(0.03)


def test_scratch_tickets_end_in_a_convolution(tmp_path: Path) -> None:
    """The published networks have ``fc``, a 1x1 convolution without bias; it may be left dense."""
    state, expected = score_state("rlth")
    for key in ("weight", "scores"):
        state[f"fc.{key}"] = state.pop(f"linear.{key}")[..., None, None]
    del state["linear.bias"]
    path = write(tmp_path / "best.pth", {"state_dict": {f"module.{k}": t for k, t in state.items()}})
    found = read_foreign(path, keep=KEEP)
    assert_masks(masking.masks(found.model), expected)
    x, flat = images(), state["fc.weight"].flatten(1)
    linear = {"linear.weight": flat, "linear.bias": torch.zeros(7)}
    torch.testing.assert_close(found.model(x), masked_output(state | linear, expected, x, norm_affine=False))
    del state["fc.scores"], expected["linear.weight"]
    found = read_foreign(write(tmp_path / "dense-head.pth", {"state_dict": state}), keep=KEEP)
    assert_masks(masking.masks(found.model), expected)
    torch.testing.assert_close(found.model.linear.weight, flat)


def test_torch_prune_keeps_weights_and_masks(tmp_path: Path) -> None:
    state, expected, pruned = pruned_state()
    found = read_foreign(write(tmp_path / "pruned.pt", state))
    assert_masks(masking.masks(found.model), expected)
    original = found.model.conv1.parametrizations.weight.original
    assert original.equal(state["conv1.weight_orig"])
    torch.testing.assert_close(found.model(images()), pruned(images()))
    kept = sum(int(m.sum()) for m in expected.values()) / sum(m.numel() for m in expected.values())
    assert found.header["keep"] == pytest.approx(kept)
    assert (found.header["method"], found.header["epoch"]) == ("torch-prune", None)


def test_torch_prune_of_a_layer_that_we_keep_dense(tmp_path: Path) -> None:
    model = models.build("vit", width=16).eval()
    for layer in (model.head, model.blocks[0].fc1):
        prune.l1_unstructured(layer, "weight", 0.5)
    found = read_foreign(write(tmp_path / "vit.pt", model.state_dict()))
    assert list(masking.masks(found.model)) == ["blocks.0.fc1.weight"]
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.model(x), model(x))


def test_dense_file_is_masked_where_it_is_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, expected = dense_state("hydra")
    path = write(tmp_path / "sharpness" / "checkpoint_dense.pth.tar", envelope(state))
    found = read_foreign(path)
    assert_masks(masking.masks(found.model), expected)
    assert found.header["keep"] == pytest.approx(KEEP, abs=2e-3)
    assert found.header["method"] == "hydra"
    assert found.header["format"] == "dense"
    assert caplog.records == []
    torch.testing.assert_close(found.model(images()), masked_output(state, expected, images()))


@pytest.mark.parametrize(("form", "folder"), [("harp", "runs"), ("hydra", "res18_HARP_adv")])
def test_harps_dense_file_is_warned_of(
    form: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, expected = dense_state(form)
    path = write(tmp_path / folder / "checkpoint_dense.pth.tar", envelope(state))
    with caplog.at_level(logging.WARNING):
        found = read_foreign(path)
    assert_masks(masking.masks(found.model), expected)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: ")
    assert "not HARP's mask" in record.getMessage()
    assert "checkpoint.pth.tar with --keep" in record.getMessage()
    assert found.header["method"] == "harp"


def test_safetensors_of_another_tool(tmp_path: Path) -> None:
    state, expected = score_state("hydra")
    save_file(state, tmp_path / "model.safetensors")
    assert_masks(masking.masks(read_foreign(tmp_path / "model.safetensors", keep=KEEP).model), expected)


# --- the published networks ---


@pytest.mark.parametrize("entry", REFERENCE)
def test_published_networks_are_recognised_by_their_keys(entry: str) -> None:
    state = {key: torch.zeros(()).expand(shape) for key, shape in REFERENCE[entry].items()}
    assert recognise(state) == entry.partition("/")[2]


@pytest.mark.parametrize("form", ["hydra", "harp"])
def test_published_wide_resnet_in_full(form: str, tmp_path: Path) -> None:
    """Every key of the published file, HYDRA's unused ``sub_block1`` with its scores included."""
    torch.manual_seed(6)
    shapes = REFERENCE[f"{form}/wrn_28_4"]
    state = {k: torch.randn(s) if k.endswith(("scores", "score")) else torch.zeros(s) for k, s in shapes.items()}
    assert any(key.startswith("sub_block1") for key in state) == (form == "hydra")
    path = write(tmp_path / "checkpoint.pth.tar", envelope(state))
    masks, header = foreign_masks(read_state(path), keep=0.1)
    scored = [k for k in state if k.endswith(".popup_scores") and not k.startswith("sub_block1")]
    assert set(masks) == {key.replace("popup_scores", "weight") for key in scored}
    for key in scored:
        rate = state.get(key.replace("popup_scores", "k_score"))
        k = 0.1 if rate is None else 0.01 + 0.99 * torch.sigmoid(rate.double())
        assert masks[key.replace("popup_scores", "weight")].equal(published_mask(state[key], k)), key
    assert header["network"] == {
        "name": "wrn_28_4",
        "classes": 10,
        "width": 64,
        "input_size": None,
        "input_channels": 3,
        "norm_affine": True,
    }


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", models.NETWORKS)
def test_sizes_are_taken_from_the_shapes(name: str, affine: bool, tmp_path: Path) -> None:
    sizes = {"classes": 13, "width": 20, "input_channels": 2, "norm_affine": affine}
    model = models.build(name, **sizes).eval()
    found = read_foreign(write(tmp_path / "dense.pt", model.state_dict()))
    assert found.header["network"] == {"name": name, "input_size": None, **sizes}
    size = 224 if name == "resnet50" else 32
    torch.testing.assert_close(found.model(x := torch.rand(1, 2, size, size)), model(x))


# --- what a pickle may hold ---

NEW, OLD = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"


def under_old_name(path: Path, legacy: bool) -> None:
    """Rename numpy's function in the pickle as numpy 1 wrote it."""
    if legacy:
        path.write_bytes(path.read_bytes().replace(NEW, OLD))
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held.replace(NEW, OLD))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", [NEW, OLD])
def test_learning_rate_may_be_a_numpy_float(name: bytes, legacy: bool, tmp_path: Path) -> None:
    state, expected = score_state("hydra")
    path = write(tmp_path / "checkpoint.pth.tar", envelope(state, lr=np.float64(0.05)), legacy)
    if name == OLD:
        under_old_name(path, legacy)
    assert [n in path.read_bytes() for n in (NEW, OLD)] == [name == NEW, name == OLD]
    assert_masks(masking.masks(read_foreign(path, keep=KEEP).model), expected)


class Creates:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(legacy: bool, tmp_path: Path) -> None:
    state, _ = score_state("hydra")
    trap = tmp_path / "created"
    path = write(tmp_path / "checkpoint.pth.tar", envelope(state, lr=Creates(trap)), legacy)
    assert "io.open" in refused(lambda: read_foreign(path, keep=KEEP), path)
    assert not trap.exists()
    torch.load(path, weights_only=False)["optimizer"]["param_groups"][0]["lr"].close()
    assert trap.exists()  # the file would have run it


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (np.float32(1), "numpy.dtypes.Float32DType"),
        (np.ones(2), "_reconstruct"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_more_than_the_allow_list_is_refused_by_name(extra: Any, named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint.pth.tar", envelope(score_state("hydra")[0], lr=extra))
    assert named in refused(lambda: read_foreign(path, keep=KEEP), path)


# --- broken twins: one line each ---


def complete(form: str) -> State:
    if form == "torch-prune":
        return pruned_state()[0]
    return dense_state("hydra")[0] if form == "dense" else score_state(form)[0]


FORMS = ["hydra", "harp", "rlth", "torch-prune", "dense"]
KIND = {"hydra": "popup_scores", "harp": "k_score", "rlth": "scores", "torch-prune": "weight_mask"}


def both(path: Path, **options: Any) -> list[Callable[[], Checkpoint | tuple[dict[str, Tensor], dict[str, Any]]]]:
    return [
        lambda: read_foreign(path, keep=KEEP, **options),
        lambda: foreign_masks(read_state(path), keep=KEEP, **options),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_on_some_keys_alone(form: str, tmp_path: Path) -> None:
    state = {k if k.startswith("layer3") else f"module.{k}": t for k, t in complete(form).items()}
    path = write(tmp_path / "model.pth", {"state_dict": state})
    for read in both(path):
        assert "'module.', layer3.0.conv1.weight" in refused(read, path)


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_layer_is_named(form: str, tmp_path: Path) -> None:
    state = complete(form)
    part = KIND.get(form, "weight")
    for lost in {"layer2.0.conv1.weight", f"layer2.0.conv1.{part}"} & state.keys():
        path = write(tmp_path / "model.pth", {k: t for k, t in state.items() if k != lost})
        for read in both(path):
            assert lost in refused(read, path)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_tensor_of_another_shape_is_named(form: str, tmp_path: Path) -> None:
    state = complete(form)
    for lost in {"layer4.1.bn1.bias", f"layer2.0.conv1.{KIND.get(form, 'weight')}"} & state.keys():
        path = write(tmp_path / "model.pth", state | {lost: torch.zeros(3)})
        for read in both(path):
            assert lost in refused(read, path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file(share: float, legacy: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint.pth.tar", envelope(complete("hydra")), legacy)
    held = path.read_bytes()
    path.write_bytes(held[: int(share * len(held))])
    assert "truncated" in refused(lambda: read_foreign(path, keep=KEEP), path)


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(complete("hydra"), path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated" in refused(lambda: read_foreign(path, keep=KEEP), path)


@pytest.mark.parametrize("kind", ["popup_scores", "k_score"])
def test_scores_and_rates_with_nan(kind: str, tmp_path: Path) -> None:
    state = complete("harp")
    state[f"layer3.0.conv1.{kind}"].fill_(float("nan"))
    path = write(tmp_path / "model.pth", state)
    for read in both(path):
        assert f"layer3.0.conv1.{kind}" in refused(read, path)


def test_a_mask_that_is_none(tmp_path: Path) -> None:
    state = complete("torch-prune")
    state["conv1.weight_mask"][0] = 0.5
    path = write(tmp_path / "model.pth", state)
    assert "conv1.weight_mask" in refused(lambda: read_foreign(path), path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"epoch": 3}, [torch.ones(2)], torch.ones(2)])
def test_a_file_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth", content)
    assert "no state dict" in refused(lambda: read_foreign(path), path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(lambda: read_foreign(tmp_path / "no.pth"), tmp_path / "no.pth")
    assert "cannot be read" in refused(lambda: read_foreign(tmp_path), tmp_path)


# --- what a file does not say ---


@pytest.mark.parametrize("form", ["hydra", "harp", "rlth"])
def test_missing_keep_is_asked_for(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth", complete(form))
    for read in (lambda: read_foreign(path), lambda: foreign_masks(read_state(path))):
        assert "--keep" in refused(read, path)
    for keep in (0.0, 1.2, float("nan")):
        assert "keep" in refused(lambda keep=keep: read_foreign(path, keep=keep), path)  # type: ignore[misc]


def test_another_depth_is_not_cut_to_fit(tmp_path: Path) -> None:
    """A WideResNet of depth 34 has all keys of depth 28; taking those alone would be another network."""
    state = models.build("wrn_28_4", width=8).state_dict()
    state = {k: t + 1.0 for k, t in state.items()}
    fifth = {k.replace("layer.3", "layer.4"): t for k, t in state.items() if ".layer.3." in k}
    path = write(tmp_path / "wrn34.pth", state | fifth)
    assert "does not say its network; give --network" in refused(lambda: read_foreign(path), path)
    message = refused(lambda: read_foreign(path, network="wrn_28_4"), path)
    assert "block1.layer.4.bn1" in message


def test_a_network_that_is_not_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth", complete("hydra"))
    for name in ("vgg16_bn", "resnet50", "no_such_network"):
        for read in both(path, network=name):
            assert name in refused(read, path)
    for read in both(path, width=8):
        assert "conv1.weight has shape [4, 1, 3, 3]" in refused(read, path)


def test_a_file_does_not_say_the_groups_of_a_group_norm(tmp_path: Path) -> None:
    path = write(tmp_path / "groups.pth", network(norm="group").state_dict())
    for read in both(path, network="resnet18"):
        assert "lacks bn1.running_mean, which resnet18 has; a file does not say how many groups" in refused(read, path)


def test_masks_of_an_unknown_network_come_in_the_files_order(tmp_path: Path) -> None:
    torch.manual_seed(7)
    shapes = {"stem": (6, 3, 3, 3), "a": (20, 6), "head": (5, 20)}
    state, expected = {}, {}
    for i, (layer, shape) in enumerate(shapes.items()):
        state[f"{layer}.weight"], state[f"{layer}.popup_scores"] = torch.randn(shape), torch.randn(shape)
        state[f"{layer}.k_score"] = torch.tensor(float(i - 1))
        k = 0.03 + 0.97 * torch.sigmoid(state[f"{layer}.k_score"].double())
        expected[f"{layer}.weight"] = published_mask(state[f"{layer}.popup_scores"], k)
    path = write(tmp_path / "own.pth", {"state_dict": {f"module.{k}": t for k, t in state.items()}})
    masks, header = foreign_masks(read_state(path), keep=KEEP)
    assert_masks(masks, expected)
    assert (header["network"], header["method"]) == (None, "harp")
    assert "--network" in refused(lambda: read_foreign(path, keep=KEEP), path)
    state["a.popup_scores"] = torch.randn(20, 1)
    path = write(tmp_path / "channels.pth", state)
    assert "scores of a " in refused(lambda: foreign_masks(read_state(path), keep=KEEP), path)
