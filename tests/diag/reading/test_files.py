"""Files, folders and runs as sources of checkpoints and masks."""

import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s2ap_core import models
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import save_masks
from s2ap_core.masks import masking
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.masking import attach, attach_masks, fix_masks, scores
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.runs.checkpoints import Checkpoint, save_checkpoint
from s2ap_diag.reading.anything import load
from s2ap_diag.reading.files import epoch_of, expand, is_best, series_of
from s2ap_diag.reading.masks import MaskFile
from s2ap_diag.reading.read import read

HEADER = {
    "network": {
        "name": "resnet18",
        "classes": 10,
        "width": 4,
        "input_size": 8,
        "input_channels": 1,
        "norm_affine": True,
    },
    "dataset": "digits",
    "method": "hydra",
    "keep": 0.2,
    "seed": 0,
    "stage": "prune",
    "epoch": 3,
}


def network() -> nn.Module:
    torch.manual_seed(2)
    return models.build(**HEADER["network"])


def checkpoint_of(path: Path, **options: Any) -> Checkpoint:
    return read(path, **options).as_checkpoint()


def masks_of(path: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = read(path, **options).as_masks()
    return {name: torch.from_numpy(mask) for name, mask in file.masks.unpack().items()}, file.header


def refused(read: Callable[[], object], path: Path) -> str:
    """The message of an InputError: one line that names the path."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in names]
    for file in random.Random(0).sample(files, len(files)):
        file.touch()
    return files


def assert_masks(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(found[name].dtype == torch.bool and found[name].equal(expected[name]) for name in expected)


# --- folders ---


def test_a_folder_is_ordered_by_the_numbers_in_the_names(tmp_path: Path) -> None:
    ordered = touch(tmp_path, "epoch-1.pth.tar", "epoch-2.pth", "epoch-10.pt", "epoch-100.safetensors")
    touch(tmp_path, "notes.txt", ".epoch-3.pt", ".epoch-4.safetensors.tmp", "state-prune.safetensors")
    (tmp_path / "epoch-5.pt").mkdir()
    assert expand([tmp_path], "checkpoint") == ordered


def test_arrays_count_as_masks_alone(tmp_path: Path) -> None:
    npz, npy, pt = touch(tmp_path, "1.npz", "2.npy", "3.pt")
    assert expand([tmp_path], "masks") == [npz, npy, pt]
    assert expand([tmp_path], "checkpoint") == [pt]


def test_a_run_stands_for_its_checkpoints_or_masks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints = touch(run / "ckpt", "pretrain.safetensors", "prune-epoch-000.safetensors")
    touch(run / "ckpt", "state-pretrain.safetensors")
    masks = touch(run / "masks", "epoch-000.safetensors", "epoch-001.safetensors")
    touch(run, "config.toml", "stray.pt")
    assert expand([run], "checkpoint") == checkpoints
    assert expand([run], "masks") == masks
    assert expand([run / "masks"], "masks") == masks
    assert expand([run / "ckpt"], "masks") == checkpoints


def test_of_a_folder_the_best_comes_after_the_epochs(tmp_path: Path) -> None:
    """Also where plain sorting of names puts it first, and without zeros before the numbers."""
    for folder, stem in (("ours", "prune-epoch-"), ("theirs", "")):
        names = [f"{stem}{epoch}.pth" for epoch in range(12)]
        best = "prune-best.pth" if stem else "best.pth"
        ordered = touch(tmp_path / folder, *names, best)
        assert expand([tmp_path / folder], "checkpoint") == ordered


def test_a_series_is_what_names_say_besides_the_epoch() -> None:
    named = {
        "prune-epoch-012.safetensors": "prune",
        "prune-best.safetensors": "prune",
        "mask_7.pth.tar": "mask",
        "Epoch_3.pt": "",
        "3.npz": "",
        "model_best.pth.tar": "model",
        "wrn_28_4.pt": "wrn_28_4",
        "wrn_28_4-7.pt": "wrn_28_4",
        "resnet18.pt": "resnet18",
    }
    assert {name: series_of(Path(name)) for name in named} == named
    assert [name for name in named if is_best(Path(name))] == ["prune-best.safetensors", "model_best.pth.tar"]


def test_several_paths_keep_their_order(tmp_path: Path) -> None:
    b = touch(tmp_path / "b", "1.pt", "2.pt")
    a = touch(tmp_path / "a", "3.pt")
    (single,) = touch(tmp_path, "any.name")
    assert expand([tmp_path / "b", single, tmp_path / "a"], "checkpoint") == [*b, single, *a]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (file,) = touch(tmp_path / "there", "1.pt")
    (tmp_path / "there" / "2.pt").symlink_to(tmp_path / "there" / "2.pt")  # itself
    (tmp_path / "there" / "3.pt").symlink_to(tmp_path / "gone.pt")
    (tmp_path / "there" / "4.pt").symlink_to(tmp_path / "there")  # the folder it is in
    link = tmp_path / "there" / "5.pt"
    link.symlink_to(file)
    assert expand([tmp_path / "there"], "checkpoint") == [file, link]
    loop = tmp_path / "there" / "2.pt"
    assert "no such" in refused(lambda: expand([loop], "checkpoint"), loop)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    (file,) = touch(tmp_path / "full", "1.pt")
    missing, empty, run = tmp_path / "missing", tmp_path / "empty", tmp_path / "run"
    touch(empty, "notes.txt", "state-prune.safetensors")
    touch(run / "ckpt", "pretrain.safetensors")
    assert "no such" in refused(lambda: expand([file, missing], "masks"), missing)
    assert "holds no checkpoint" in refused(lambda: expand([empty], "checkpoint"), empty)
    assert "no such folder" in refused(lambda: expand([run], "masks"), run / "masks")


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("prune-epoch-000.safetensors", 0),
        ("prune-epoch-012.safetensors", 12),
        ("epoch_7_acc_45.pth.tar", 7),
        ("Epoch3.pt", 3),
        ("checkpoint_19.pth.tar", 19),
        ("004.npz", 4),
        ("model_best.pth.tar", None),
        ("resnet18.pt", None),
        ("wrn_28_4.pth.tar", None),
        ("wrn_28_4-30.pt", 30),
        ("prune-best.safetensors", None),
    ],
)
def test_epoch_in_a_name(name: str, epoch: int | None) -> None:
    assert epoch_of(Path("epoch-99") / name) == epoch


# --- ours ---


def test_our_checkpoint_and_its_masks(tmp_path: Path) -> None:
    model = attach(network(), 0.2)
    for score in scores(model).values():
        nn.init.normal_(score)
    path = tmp_path / "prune-epoch-003.safetensors"
    save_checkpoint(path, model, HEADER)
    found = checkpoint_of(path, network="vgg16_bn", keep=0.9)  # the file knows better
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(found.model(x), model.eval()(x))
    assert found.header.items() >= HEADER.items()
    expected = masking.masks(model)
    masks, header = masks_of(path)
    assert_masks(masks, expected)
    assert header == found.header
    fix_masks(model)  # as in finetuning: a stored mask in the place of scores
    save_checkpoint(path, model, HEADER)
    assert_masks(masks_of(path)[0], expected)


def test_our_learned_rates_are_heeded(tmp_path: Path) -> None:
    model = network()
    rates = iter(torch.linspace(-3, 3, len(maskable_layers(model))))

    def make(_name: str, layer: nn.Module) -> ScoreMask:
        return ScoreMask(torch.randn(layer.weight.shape), 0.2, nn.Parameter(next(rates)), 0.02)

    attach_masks(model, make)
    save_checkpoint(tmp_path / "harp.safetensors", model, HEADER | {"method": "harp"})
    assert_masks(masks_of(tmp_path / "harp.safetensors")[0], masking.masks(model))


def test_our_mask_files(tmp_path: Path) -> None:
    expected = masking.masks(attach(network(), 0.2))
    path = tmp_path / "epoch-003.safetensors"
    save_masks(path, expected, HEADER)
    masks, header = masks_of(path)
    assert_masks(masks, expected)
    assert (header["epoch"], header["keep"]) == (3, 0.2)
    refused(lambda: checkpoint_of(path), path)


def test_our_pretrained_network_has_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.safetensors"
    save_checkpoint(path, network(), HEADER | {"stage": "pretrain"})
    assert "no masks (stage pretrain)" in refused(lambda: masks_of(path), path)
    assert masking.masks(checkpoint_of(path).model) == {}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.9])
def test_ours_truncated_or_altered(share: float, tmp_path: Path) -> None:
    path = tmp_path / "prune-best.safetensors"
    save_checkpoint(path, attach(network(), 0.2), HEADER)
    held = path.read_bytes()
    path.write_bytes(held[: int(share * len(held))])
    for use in (checkpoint_of, masks_of):
        assert "truncated" in refused(lambda use=use: use(path), path)  # type: ignore[misc]
    path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    for use in (checkpoint_of, masks_of):
        assert "checksum" in refused(lambda use=use: use(path), path)  # type: ignore[misc]


def test_what_a_file_is_loaded_as(tmp_path: Path) -> None:
    model, ours, packed = (
        attach(network(), 0.2),
        tmp_path / "prune-best.safetensors",
        tmp_path / "epoch-003.safetensors",
    )
    save_checkpoint(ours, model, HEADER)
    save_masks(packed, masking.masks(model), HEADER)
    state, hydra_masks = hydra_state()
    theirs, plain = tmp_path / "hydra.pt", tmp_path / "plain.pt"
    torch.save(state, theirs)
    torch.save(hydra_masks, plain)
    x = torch.rand(2, 1, 8, 8)
    loaded = load(str(ours))
    assert isinstance(loaded, Checkpoint)
    torch.testing.assert_close(loaded.model(x), model.eval()(x))
    assert isinstance(load(theirs, keep=0.25), Checkpoint)
    for path, expected in ((packed, masking.masks(model)), (plain, hydra_masks)):
        found = load(path)
        assert isinstance(found, MaskFile)
        assert_masks({name: torch.from_numpy(mask) for name, mask in found.masks.unpack().items()}, expected)
    assert load(packed).header["epoch"] == 3
    assert "holds masks and no weights" in refused(lambda: checkpoint_of(packed), packed)


def test_a_damaged_header_does_not_make_ours_another_tools(tmp_path: Path) -> None:
    for content in ("[]", "null", "{", '{"shapes": 3}'):
        save_file({"w": torch.ones(2, 2)}, tmp_path / "w.safetensors", metadata={"s2ap": content})
        for use in (masks_of, checkpoint_of):
            refused(lambda use=use: use(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")  # type: ignore[misc]


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError("imports torch")

sys.meta_path.insert(0, Refuse())
from pathlib import Path
from s2ap_diag.reading.files import expand
from s2ap_diag.reading.read import read
from s2ap_diag.stability import hamming, trajectory

def steps(folder):
    return trajectory([read(file).as_masks().masks for file in expand([Path(folder)], "masks")])

packed, arrays = map(steps, sys.argv[1:])
assert [step.flipped for step in packed] == [step.flipped for step in arrays] == [3]
"""


def test_mask_files_are_read_and_compared_without_torch(tmp_path: Path) -> None:
    first = {"conv1.weight": torch.rand(4, 1, 3, 3) < 0.5, "fc.weight": torch.rand(10, 7) < 0.5}
    second = {name: mask.clone() for name, mask in first.items()}
    second["fc.weight"][0, :3] ^= True
    (tmp_path / "arrays").mkdir()
    for epoch, masks in enumerate((first, second)):
        save_masks(tmp_path / "packed" / f"epoch-{epoch}.safetensors", masks, HEADER)
        np.savez(tmp_path / "arrays" / f"{epoch}.npz", **{name: mask.numpy() for name, mask in masks.items()})
    folders = [str(tmp_path / name) for name in ("packed", "arrays")]
    outcome = subprocess.run([sys.executable, "-c", NO_TORCH, *folders], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


# --- other tools' ---


def hydra_state() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict in HYDRA's layout, and its masks at keep 0.25 by a naive sort."""
    state, masks = network().state_dict(), {}
    for name in [name for name, t in state.items() if name.endswith("weight") and t.ndim in (2, 4)]:
        values = torch.randn_like(state[name])
        state[name.replace("weight", "popup_scores")] = values
        dropped = sorted(range(values.numel()), key=values.abs().flatten().tolist().__getitem__)
        masks[name] = torch.ones(values.numel(), dtype=torch.bool)
        masks[name][dropped[: int(0.75 * values.numel())]] = False
        masks[name] = masks[name].view(values.shape)
    return state, masks


def test_another_tools_checkpoint(tmp_path: Path) -> None:
    state, expected = hydra_state()
    path = tmp_path / "checkpoint_12.pth.tar"
    torch.save({"state_dict": state}, path)
    found = checkpoint_of(path, keep=0.25, dataset="digits")
    assert_masks(masking.masks(found.model), expected)
    assert (found.header["epoch"], found.header["dataset"]) == (12, "digits")
    masks, header = masks_of(path, keep=0.25)
    assert_masks(masks, expected)
    assert header["epoch"] == 12
    for use in (checkpoint_of, masks_of):
        assert "--keep" in refused(lambda use=use: use(path), path)  # type: ignore[misc]
    torch.save({"state_dict": state, "epoch": 5}, path)  # the file itself knows better than its name
    assert masks_of(path, keep=0.25)[1]["epoch"] == checkpoint_of(path, keep=0.25).header["epoch"] == 5


def test_a_dense_checkpoint_is_not_taken_for_masks(tmp_path: Path) -> None:
    state, masks = hydra_state()
    dense = {name: t * masks.get(name, 1) for name, t in state.items() if not name.endswith("scores")}
    torch.save(dense, tmp_path / "dense.pt")
    assert_masks(masks_of(tmp_path / "dense.pt")[0], masks)


# --- plain masks ---

Writer = Callable[[Path, dict[str, np.ndarray]], None]
WRITERS: dict[str, Writer] = {
    ".npz": lambda path, arrays: np.savez_compressed(path, **arrays),
    ".pt": lambda path, arrays: torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, path),
    ".pth": lambda path, arrays: torch.save(
        {"epoch": 4, "state_dict": {n: torch.from_numpy(a) for n, a in arrays.items()}}, path
    ),
    ".safetensors": lambda path, arrays: save_file({n: torch.from_numpy(a) for n, a in arrays.items()}, path),
}


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("naming", ["{}", "{}.weight", "{}.mask", "module.{}.weight_mask"])
def test_plain_masks(naming: str, suffix: str, dtype: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    shapes = {"conv1": (4, 1, 3, 3), "layer1.0.conv1": (4, 4, 3, 3), "fc": (10, 7)}
    expected = {layer: generator.random(shape) < 0.3 for layer, shape in shapes.items()}
    path = tmp_path / f"mask_004{suffix}"
    WRITERS[suffix](path, {naming.format(layer): mask.astype(dtype) for layer, mask in expected.items()})
    masks, header = masks_of(path)
    assert masks.keys() == {f"{layer}.weight" for layer in shapes}
    for layer, mask in expected.items():
        assert masks[f"{layer}.weight"].dtype == torch.bool
        assert np.array_equal(masks[f"{layer}.weight"].numpy(), mask)
    total = sum(mask.sum() for mask in expected.values()) / sum(mask.size for mask in expected.values())
    assert header["keep"] == pytest.approx(total)
    assert header["epoch"] == 4


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.eye(5, dtype=np.int8))
    masks, header = masks_of(tmp_path / "m.npy")
    assert list(masks) == ["weight"]
    assert masks["weight"].equal(torch.eye(5, dtype=torch.bool))
    assert (header["keep"], header["epoch"], header["network"]) == (0.2, None, None)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan")])
@pytest.mark.parametrize("suffix", WRITERS)
def test_masks_with_other_values_are_refused(suffix: str, value: float, tmp_path: Path) -> None:
    mask = np.eye(4, dtype=np.float32)
    wrong = mask.copy()
    wrong[2, 1] = value
    path = tmp_path / f"masks{suffix}"
    WRITERS[suffix](path, {"a.weight": mask, "b.weight": wrong})
    assert re.search(r"b\.weight holds values other than 0 and 1", refused(lambda: masks_of(path), path))


def test_an_array_with_other_values_is_refused(tmp_path: Path) -> None:
    for array in (np.array([0.0, 0.1]), np.array(["0", "1"])):
        np.save(tmp_path / "m.npy", array)
        assert "other than 0 and 1" in refused(lambda: masks_of(tmp_path / "m.npy"), tmp_path / "m.npy")


@pytest.mark.parametrize("suffix", WRITERS)
def test_truncated_masks(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"masks{suffix}"
    WRITERS[suffix](path, {"a": np.eye(40, dtype=bool)})
    held = path.read_bytes()
    for length in (0, 60, len(held) // 2, len(held) - 30):
        path.write_bytes(held[:length])
        assert "truncated" in refused(lambda: masks_of(path), path)


def test_files_that_hold_no_masks(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "twice.npz", **{"a": np.eye(2), "a.mask": np.eye(2)})
    for name in ("empty.npz", "twice.npz"):
        assert "no masks" in refused(lambda name=name: masks_of(tmp_path / name), tmp_path / name)  # type: ignore[misc]
    for name in ("no.npz", "no.pt", "no.safetensors"):
        assert "no such file" in refused(lambda name=name: masks_of(tmp_path / name), tmp_path / name)  # type: ignore[misc]
    assert "no such file" in refused(lambda: checkpoint_of(tmp_path / "no.pt"), tmp_path / "no.pt")


class Creates:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.pkl", "a.safetensors"])
def test_code_in_a_file_does_not_run(name: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "created", tmp_path / name
    held = {"a": torch.ones(3), "b": Creates(trap)}
    if path.suffix in (".npy", ".npz"):
        (np.save if path.suffix == ".npy" else np.savez)(path, np.array([Creates(trap)], dtype=object))
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(held, protocol=2))
    else:
        torch.save(held, path)
    for use in (masks_of, checkpoint_of):
        refused(lambda use=use: use(path), path)  # type: ignore[misc]
    assert not trap.exists()
