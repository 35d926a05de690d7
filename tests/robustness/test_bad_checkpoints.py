"""Damaged and hostile checkpoints and masks, ours and other tools', through every command."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import torch
from bad_world import FOREIGN, SMALL, Attempt, World, all_of, attempt_checkpoint, commands_on
from contract import checked
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


def test_damaged_checkpoints_of_ours(attempt: Attempt, world: World, folder: Path) -> None:
    data = world.checkpoint.read_bytes()
    path = folder / "prune-best.safetensors"
    calls = commands_on(path, world, FOREIGN, folder.with_name("out"))
    path.write_bytes(data)
    intact = {name: checked(calls[name]).records() for name in ("inspect", "hamming")}
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 16)),
        *(("splice", *fault) for fault in mutate.splices(data, 16)),
        *(("header declares", *fault) for fault in mutate.safetensors_faults(data)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
    ]

    def case(turn: int, kind: str, held: bytes) -> None:
        path.write_bytes(held)
        for name, outcome in attempt_checkpoint(attempt, kind, path, world, turn, []).items():
            # What can be read is what was written.
            assert outcome.status == 2 or name not in intact or outcome.records() == intact[name]
            assert outcome.status == 0 or str(path) in outcome.stderr

    all_of([(what, lambda a=(turn, kind, held): case(*a)) for turn, (kind, what, held) in enumerate(faults)])


def test_any_flipped_bit_of_a_native_file_is_found(fault_table: Any, world: World, folder: Path) -> None:
    """A sample of all bits, each byte's turn for one of its bits."""
    rng = random.Random(0)
    for source in (world.checkpoint, world.mask, world.run / "ckpt" / "state-prune.safetensors"):
        data = source.read_bytes()
        tensors, header = load_tensors(source)
        path = folder / source.name
        begins = 8 + int.from_bytes(data[:8], "little")
        header_bytes = rng.sample(range(begins), 120)
        tensor_bytes = rng.sample(range(begins, len(data)), min(280, len(data) - begins))
        for position in header_bytes + tensor_bytes:
            damaged = bytearray(data)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            try:
                found, said = load_tensors(path)
            except InputError:
                fault_table.add("bit flip / load", True)
                continue
            # White space between entries, say: nothing may differ from what was written.
            same = position < begins and said == header and found.keys() == tensors.keys()
            same = same and all(torch.equal(found[name], tensors[name]) for name in tensors)
            fault_table.add("bit flip / load", same)
            assert same, (source, position)


def test_checkpoints_with_a_valid_checksum_and_wrong_tensors(attempt: Attempt, world: World, folder: Path) -> None:
    path = folder / "prune-best.safetensors"
    chosen = ("conv1.weight", "conv1.scores", "bn1.running_var", "bn1.num_batches_tracked")
    some = {name: world.tensors[name] for name in chosen}
    faults = list(mutate.dtype_and_shape_faults(some))

    def case(turn: int, tensors: dict[str, Tensor]) -> None:
        rest = {name: t for name, t in world.tensors.items() if name not in some}
        save_tensors(path, {**rest, **tensors} if tensors else {}, world.header)
        attempt_checkpoint(attempt, "wrong tensors", path, world, turn)

    all_of([(what, lambda a=(turn, tensors): case(*a)) for turn, (what, tensors) in enumerate(faults)])


def test_checkpoints_with_a_valid_checksum_and_wrong_headers(attempt: Attempt, world: World, folder: Path) -> None:
    path = folder / "prune-best.safetensors"

    def case(turn: int, header: dict[str, Any]) -> None:
        save_tensors(path, world.tensors, header)
        attempt_checkpoint(attempt, "wrong header", path, world, turn, [])

    faults = enumerate(mutate.header_faults(world.header))
    all_of([(what, lambda a=(turn, header): case(*a)) for turn, (what, header) in faults])


def test_damaged_masks_of_ours(attempt: Attempt, world: World, folder: Path) -> None:
    data = world.mask.read_bytes()
    path = folder / "epoch-003.safetensors"
    packed, header = load_tensors(world.mask)
    name = next(iter(packed))
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 12)),
        *(("header declares", *fault) for fault in mutate.safetensors_faults(data)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
    ]
    crafted = [(what, packed, header) for what, header in mutate.shapes_faults(header)]
    bits = packed[name]
    for what, other in (
        ("floats", bits.float()),
        ("shorter", bits[:-1]),
        ("longer", torch.cat([bits, bits])),
        ("set behind the end", bits | 255),
        ("a scalar", bits[0]),
        ("a table", bits[None]),
    ):
        crafted.append((what, {**packed, name: other}, header))

    def hamming(kind: str) -> None:
        outcome = attempt(f"{kind} / hamming", ["hamming", world.mask, path, *SMALL], untouched=folder)
        if outcome.status == 0:
            assert outcome.records()[0]["flipped"] == 0
        else:
            assert str(path) in outcome.stderr

    def raw(kind: str, held: bytes) -> None:
        path.write_bytes(held)
        hamming(kind)

    def made(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        save_tensors(path, tensors, header)
        outcome = attempt("wrong shapes / hamming", ["hamming", world.mask, path, *SMALL], untouched=folder)
        first = attempt("wrong shapes / hamming", ["hamming", path, world.mask, *SMALL], untouched=folder)
        assert outcome.status == first.status

    all_of([(what, lambda a=(kind, held): raw(*a)) for kind, what, held in faults])
    all_of([(what, lambda a=(tensors, header): made(*a)) for what, tensors, header in crafted])


# --- other tools' files ---
def test_other_tools_checkpoints(attempt: Attempt, world: World, folder: Path) -> None:
    faults: list[tuple[str, str, str, bytes]] = []
    for suffix, data in (
        (".pth.tar", mutate.saved({"state_dict": world.foreign, "epoch": 3})),
        (".pt", mutate.saved(world.foreign, legacy=True)),
        (".safetensors", mutate.foreign_safetensors(world.foreign)),
    ):
        faults += [("truncation", what, suffix, held) for what, held in mutate.truncations(data)]
        faults += [("bit flip", what, suffix, held) for what, held in mutate.bit_flips(data, 16)]
        faults += [("splice", what, suffix, held) for what, held in mutate.splices(data, 10)]
        faults += [("wrong format", what, suffix, held) for what, held in mutate.FORMATS.items()]
    faults += [("hostile archive", what, ".pt", held) for what, held in mutate.torch_faults(world.foreign)]
    faults += [
        ("header declares", what, ".safetensors", held)
        for what, held in mutate.safetensors_faults(mutate.foreign_safetensors(world.foreign))
    ]

    def case(turn: int, kind: str, suffix: str, held: bytes) -> None:
        path = folder / f"checkpoint_3{suffix}"
        path.write_bytes(held)
        attempt_checkpoint(attempt, f"other tool, {kind}", path, world, turn)
        path.unlink()

    all_of([(what, lambda a=(turn, k, s, h): case(*a)) for turn, (k, what, s, h) in enumerate(faults)])


def tool_states(foreign: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same network in the layout of each tool."""
    yield foreign
    layers = [name.removesuffix(".popup_scores") for name in foreign if name.endswith("popup_scores")]
    yield {**foreign, **{f"{layer}.k_score": torch.tensor(0.2) for layer in layers}}
    yield {name.replace("popup_scores", "scores"): tensor for name, tensor in foreign.items()}
    plain = {name: tensor for name, tensor in foreign.items() if not name.endswith("popup_scores")}
    yield plain
    pruned = {name.replace(".weight", ".weight_orig") if name[:-7] in layers else name: t for name, t in plain.items()}
    yield pruned | {f"{layer}.weight_mask": (plain[f"{layer}.weight"] > 0).float() for layer in layers}


def test_other_tools_wrong_tensors(attempt: Attempt, world: World, folder: Path) -> None:
    faults = []
    for state in tool_states(world.foreign):
        some = {name: t for name, t in state.items() if name.startswith(("conv2.", "linear.bias"))}
        rest = {name: t for name, t in state.items() if name not in some}
        faults += [(what, {**rest, **tensors}) for what, tensors in mutate.dtype_and_shape_faults(some)]

    def case(turn: int, tensors: dict[str, Tensor]) -> None:
        path = folder / f"checkpoint_3.{'pt' if turn % 3 else 'safetensors'}"
        path.write_bytes(mutate.saved(tensors) if turn % 3 else mutate.foreign_safetensors(tensors))
        options = FOREIGN if turn % 2 else FOREIGN[:2]  # without --network: masks of any network
        for name in ("inspect", "hamming") if turn % 4 else ("verify", "evaluate"):
            calls = commands_on(path, world, options, folder.with_name("out"))
            statuses = (0, 1, 2) if name == "verify" else (0, 2)
            attempt(f"other tool, wrong tensors / {name}", calls[name], untouched=folder, statuses=statuses)
        path.unlink()

    all_of([(what, lambda a=(turn, tensors): case(*a)) for turn, (what, tensors) in enumerate(faults)])


def test_plain_arrays_as_masks(attempt: Attempt, world: World, folder: Path) -> None:
    found = {name.removesuffix(".weight"): bits for name, bits in masks_in(world.mask).items()}
    np.savez_compressed(folder / "good.npz", **found)
    np.save(folder / "good.npy", next(iter(found.values())))
    npz, npy_data = (folder / "good.npz").read_bytes(), (folder / "good.npy").read_bytes()
    other = folder.with_name("good.npy")
    (folder / "good.npz").unlink()
    shutil.move(folder / "good.npy", other)
    faults = [("hostile array", what, ".npz", held) for what, held in mutate.npz_faults(npz)]
    faults += [("hostile array", what, ".npy", held) for what, held in mutate.npy_faults()]
    for suffix, data in ((".npz", npz), (".npy", npy_data)):
        faults += [("truncation", what, suffix, held) for what, held in mutate.truncations(data)]
        faults += [("bit flip", what, suffix, held) for what, held in mutate.bit_flips(data, 24)]
        faults += [("splice", what, suffix, held) for what, held in mutate.splices(data, 16)]
        faults += [("wrong format", what, suffix, held) for what, held in mutate.FORMATS.items()]

    def case(kind: str, suffix: str, held: bytes) -> None:
        path = folder / f"mask_3{suffix}"
        path.write_bytes(held)
        good = other if suffix == ".npy" else world.mask
        for pair in ([good, path], [path, path]):
            outcome = attempt(f"{kind} / hamming", ["hamming", *pair, *SMALL], untouched=folder)
        # A file that can be read is the same as itself.
        assert outcome.status == 2 or outcome.records()[0]["flipped"] == 0
        path.unlink()

    all_of([(f"{suffix} {what}", lambda a=(k, suffix, h): case(*a)) for k, what, suffix, h in faults])
