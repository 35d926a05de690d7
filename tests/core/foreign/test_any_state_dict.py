"""State dicts of networks that are not ours, however they are wrapped and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.foreign.formats import read_state
from s2ap_core.foreign.names import prefix_between
from s2ap_core.foreign.network import foreign_checkpoint, foreign_masks
from s2ap_core.masks.masking import masks
from s2ap_core.models import build
from tests.diag.commands.running import invoke
from tests.tiny import Tiny

State = dict[str, Tensor]


def pruned(seed: int = 0) -> tuple[State, dict[str, Tensor]]:
    """A network of nobody's, two thirds of its weights zero, and where they are not."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))
    state = model.state_dict()
    kept = {name: torch.rand(state[name].shape) < 1 / 3 for name in ("0.weight", "3.weight")}
    return {name: t * kept[name] if name in kept else t for name, t in state.items()}, kept


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def wrapped(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


ENVELOPES: dict[str, Callable[[State], Any]] = {
    "tensors": lambda state: state,
    "tensors under model": lambda state: {"model": state, "epoch": 3, "acc": torch.tensor(0.5)},
    "tensors under net": lambda state: {"net": state, "optimizer": {"state": {0: {"momentum": torch.ones(9)}}}},
    "tensors under model_state_dict": lambda state: {"model_state_dict": state, "model": "mynet", "net": None},
    "tensors under module": lambda state: {"module": state},
    "tensors under ema.module": lambda state: {"ema": {"module": state, "decay": 0.99}},
    "tensors under mine": lambda state: {"mine": state, "config": {"lr": 0.1}},
}


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("how", ENVELOPES)
def test_masks_are_where_weights_are_not_zero(how: str, prefix: str, tmp_path: Path) -> None:
    state, kept = pruned()
    found, header = foreign_masks(read_state(saved(tmp_path / "my.pt", ENVELOPES[how](wrapped(prefix, state)))))
    assert found.keys() == kept.keys()
    assert all(found[name].equal(kept[name]) for name in kept)
    said = f"{how}, names without {prefix}" if prefix else how
    assert header["read"] == f"{said}; masks where the weight is not 0"
    total = sum(int(mask.sum()) for mask in kept.values()) / sum(mask.numel() for mask in kept.values())
    assert header["keep"] == pytest.approx(total)


def test_hamming_of_two_pruned_state_dicts(tmp_path: Path) -> None:
    """The command that was refused, its options' names and its result counted by hand; and what it says it read."""
    (first, kept), (second, other) = pruned(0), pruned(1)
    saved(tmp_path / "my0.pt", {"model_state_dict": first})
    saved(tmp_path / "my1.pt", wrapped("backbone.", second))
    result = invoke("hamming", tmp_path / "my0.pt", tmp_path / "my1.pt")
    assert result.exit_code == 0, result.output
    differing = sum(int((kept[name] != other[name]).sum()) for name in kept)
    entries = sum(mask.numel() for mask in kept.values())
    assert f"{differing / entries:.4g}" in result.output
    assert "my0.pt: tensors under model_state_dict; masks where the weight is not 0" in result.output
    assert "my1.pt: tensors; masks where the weight is not 0" in result.output
    assert f"my1.pt: its backbone.0.weight is 0.weight of {tmp_path / 'my0.pt'}" in result.output


def test_names_that_differ_from_the_networks_by_a_prefix(
    tiny_network: None, narrow: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """Recognised or named: a prefix that the file has and the network does not, and one the other way round."""
    model = narrow().eval()
    x = torch.rand(2, 1, 8, 8)
    path = saved(tmp_path / "tiny.pt", wrapped("backbone.", model.state_dict()))
    for network in (None, "tiny"):
        found = foreign_checkpoint(read_state(path), network=network)
        torch.testing.assert_close(found.model(x), model(x))
        assert "names without backbone." in found.header["read"]


class Wrapper(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.backbone = Tiny(**options)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def test_a_network_whose_names_have_a_prefix_that_the_file_lacks(
    monkeypatch: pytest.MonkeyPatch, narrow: Callable[..., nn.Module], tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("s2ap_core.models").models.NETWORKS, "wrapper", Wrapper)
    model = narrow().eval()
    x = torch.rand(2, 1, 8, 8)
    found = foreign_checkpoint(read_state(saved(tmp_path / "tiny.pt", model.state_dict())), network="wrapper")
    torch.testing.assert_close(found.model(x), model(x))
    assert list(masks(found.model)) == [f"backbone.{name}.weight" for name in ("conv1", "conv2", "linear")]
    assert "names with backbone." in found.header["read"]


def test_prefix_between_names() -> None:
    assert prefix_between(["a.b.weight", "a.c.weight"], ["b.weight", "c.weight"]) == "a."
    assert prefix_between(["b.weight", "c.weight"], ["b.weight", "c.weight"]) == ""
    assert prefix_between(["a.b.weight", "x.c.weight"], ["b.weight", "c.weight"]) is None
    assert prefix_between([], ["b.weight"]) is None
    assert prefix_between(["b.weight"], []) is None


def test_a_file_of_two_networks(tmp_path: Path) -> None:
    (first, _), (second, _) = pruned(0), pruned(1)
    cases = {
        "under model and ema": {"model": first, "ema": second},
        "under generator and critic": {"generator": first, "critic": second},
        "under net and best_net": {"net": first, "best_net": second, "state": first},
        "names of one begin with ema.": first | wrapped("ema.", second),
        "begin with student. and teacher.": wrapped("student.", first) | wrapped("teacher.", second),
        "'module.', 0.weight does not": wrapped("module.", first) | second,
    }
    for what, content in cases.items():
        path = saved(tmp_path / "two.pt", content)
        for read in (lambda: foreign_masks(read_state(path)), lambda: foreign_checkpoint(read_state(path))):  # noqa: B023
            message = refusal(read)
            assert what in message
            assert message.startswith(f"{path}: ")
        assert invoke("hamming", path, path).exit_code == 2
    # The same layers twice, and others beside them, are one network of two branches.
    branches = wrapped("a.", first) | wrapped("b.", second) | {"head.weight": torch.eye(4)[:, :3] * 2}
    save_file(branches, tmp_path / "one.safetensors")
    assert len(foreign_masks(read_state(tmp_path / "one.safetensors"))[0]) == 5


def test_a_known_network_twice_is_not_read_as_one_of_them(tmp_path: Path) -> None:
    """Recognised or named, whatever the prefixes; beside its masks, or its own copy it is one."""
    first, second = (build("resnet18", width=4).state_dict() for _ in range(2))
    weights = [t for t in (*first.values(), *second.values()) if t.ndim > 1]
    for weight in weights:
        weight.mul_(torch.rand_like(weight) < 0.5)
    cases = {
        "begin with student. and teacher.": wrapped("teacher.", first) | wrapped("student.", second),
        "begin with ema. and student.": wrapped("student.", first) | wrapped("ema.", second),
        "of one begin with ema.": first | wrapped("ema.", second),
        "under net and best_net": {"net": first, "best_net": second},
    }
    for what, content in cases.items():
        path = saved(tmp_path / "two.pt", content)
        for network in (None, "resnet18"):
            assert what in refusal(lambda: foreign_masks(read_state(path), network=network))  # noqa: B023
            assert what in refusal(lambda: foreign_checkpoint(read_state(path), network=network))  # noqa: B023
    kept = {name: t != 0 for name, t in first.items() if t.ndim > 1}
    beside = {"net": first, "masks": {n: m.float() for n, m in kept.items()}, "copy": dict(first)}
    found, header = foreign_masks(read_state(saved(tmp_path / "one.pt", beside)))
    assert header["network"]["name"] == "resnet18"
    assert all(torch.equal(found[name], kept[name]) for name in found)


def test_envelopes_in_circles_end(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"epoch": 1}
    circle["model"] = circle
    assert "no state dict" in refusal(lambda: read_state(saved(tmp_path / "circle.pt", circle)))


def test_what_says_no_mask(tmp_path: Path) -> None:
    state, kept = pruned()
    dense = {name: torch.ones_like(t) * 2 for name, t in state.items()}
    assert "no weight is 0" in refusal(lambda: foreign_masks(read_state(saved(tmp_path / "a.pt", dense))))
    norms = {"bn.weight": torch.zeros(3), "emb": torch.zeros(3, 4) + 0.5}
    assert "neither masks nor weights" in refusal(lambda: foreign_masks(read_state(saved(tmp_path / "b.pt", norms))))
    mixed = {"0.weight": kept["0.weight"].float(), "3.weight": state["3.weight"]}
    assert "3.weight holds values other" in refusal(lambda: foreign_masks(read_state(saved(tmp_path / "c.pt", mixed))))


def test_counts_of_a_file_that_says_no_budget_are_no_violation(tmp_path: Path) -> None:
    """What it keeps was counted in its own masks; a budget that the user names is held against them."""
    torch.manual_seed(0)
    state = build("resnet18", width=4).state_dict()
    state = {n: t * (torch.rand_like(t) < 0.3) if t.ndim > 1 else t for n, t in state.items()}
    path = saved(tmp_path / "pruned.pt", state)
    found = invoke("verify", path, "--json", "-")
    assert "violation" not in {finding["kind"] for finding in json.loads(found.stdout)}
    assert "does not say how many it should" in found.stdout
    held = json.loads(invoke("verify", path, "--keep", "0.3", "--json", "-").stdout)
    assert len([f for f in held if "keep 0.3 is" in f["message"]]) > 10
