"""The exported network: equal to the masked one, as small as counted, and read back from its files."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.errors import InputError
from s2ap_core.export import kept_channels, load_exported, save_exported, shrink
from s2ap_core.masks.channel_graph import ChannelGraph
from s2ap_core.masks.masking import attach, attach_masks, bake, fix_masks
from s2ap_core.masks.parametrization import ChannelMask
from s2ap_core.modes import train_mode
from s2ap_core.runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from tests.core.methods.test_channels import ACTIVATIONS, FLATTENS, Between

IMAGE = (1, 8, 8)
HEADER = {"network": {"name": "tiny", "classes": 10, "width": 4, "input_size": 8, "input_channels": 1}, "keep": 0.1}


def measured_flops(model: nn.Module, shape=IMAGE) -> int:
    """Multiply-accumulates as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def prune_at_random(model: nn.Module, shape=IMAGE, seed: int = 0) -> nn.Module:
    """Mask the model so that each layer keeps a third of its channels, or half, or all, in its own choice."""
    rng = torch.Generator().manual_seed(seed)
    graph = ChannelGraph(model, shape)
    prunable = {name: layer for name, layer in graph.layers.items() if layer.prunable}

    def make(name, layer):
        sizes = [size if dim == layer.input_dim else 1 for dim, size in enumerate(layer.weight.shape)]
        keep = (1 / 3, 1 / 2, 1.0)[int(torch.randint(3, (), generator=rng))]
        return ChannelMask(torch.randn(sizes, generator=rng), keep, prunable[name].group)

    return attach_masks(model, make, only=prunable).eval()


def randomise_statistics(model: nn.Module) -> None:
    """Running statistics at which signals neither vanish nor explode, each channel's own."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad(), train_mode(model, True):
        model(torch.rand(64, *IMAGE, generator=rng))
    for layer in norms:
        layer.running_mean += layer.running_var.sqrt() * torch.rand(layer.num_features, generator=rng) / 2
        layer.running_var *= 0.5 + torch.rand(layer.num_features, generator=rng)


def check(model: nn.Module, shape=IMAGE) -> nn.Module:
    """The smaller network of a masked one, compared with it."""
    kept = kept_channels(model)
    smaller = shrink(model, shape, kept)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(smaller(x), expected, atol=1e-5, rtol=0)
    assert expected.std(0).mean() > 1e-3  # the images differ by far more than that
    assert measured_flops(smaller, shape) == ChannelGraph(model, shape).flops(kept).item()
    return smaller


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn_28_4"])
def test_outputs_and_flops_are_those_of_the_masked_network(narrow, name, seed):
    model = prune_at_random(narrow(name), seed=seed)
    randomise_statistics(model)
    dense = sum(p.numel() for p in bake(model).parameters())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    smaller = check(model)
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * dense
    assert not any(isinstance(m, ChannelMask) or "Parametrized" in type(m).__name__ for m in smaller.modules())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_a_group_of_a_group_norm_goes_as_a_whole_or_not_at_all():
    torch.manual_seed(0)
    stem, norm, head = nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 5, 1)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    model = nn.Sequential(stem, norm, nn.ReLU(), head, nn.Flatten())
    wanted = torch.isin(torch.arange(16), torch.tensor([4, 6, 15]))  # of groups 1 and 3
    masked = attach_masks(model, lambda *_: ChannelMask(wanted.float().view(1, 16, 1, 1), 3 / 16, 0), only=["3"])
    smaller = check(masked.eval())
    assert (smaller.get_submodule("0").out_channels, smaller.get_submodule("3").in_channels) == (8, 3)
    assert (smaller.get_submodule("1").num_groups, smaller.get_submodule("1").num_channels) == (2, 8)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn_28_4"])
def test_networks_with_group_norm_are_exported_and_read_back(narrow, name, tmp_path):
    model = prune_at_random(narrow(name, norm="group", width=32))
    smaller = check(model)
    described = {**HEADER["network"], "name": name, "width": 32, "norm": "group"}
    checkpoint = Checkpoint(tmp_path / "x", model, {**HEADER, "network": described})
    save_exported(tmp_path / "small.safetensors", smaller, checkpoint, kept_channels(model))
    x = torch.rand(3, *IMAGE)
    torch.testing.assert_close(load_exported(tmp_path / "small.safetensors")(x), smaller(x))


DIMENSIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d),
}


@pytest.mark.parametrize("dims", DIMENSIONS)
def test_convolutions_up_and_down_in_all_dimensions(dims):
    conv, up, norm, pool, mean = DIMENSIONS[dims]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(conv(2, 6, 3, padding=1), norm(6), nn.Tanh(), pool(2), up(6, 9, 3, stride=2, output_padding=1)),
        *(norm(9), nn.Tanh(), conv(9, 6, 2), nn.Tanh(), mean(2), nn.Flatten(), nn.Linear(6 * 2**dims, 3)),
    )
    nn.init.normal_(model[-1].weight, std=30)  # means over positions hardly differ
    shape = (2, 4, 6, 5)[: 1 + dims]
    dense = sum(p.numel() for p in model.parameters())
    for seed in range(3):
        pruned = prune_at_random(bake(model), shape, seed=seed)
        assert kept_channels(pruned).keys() == {"4", "7", "11"}
        assert sum(p.numel() for p in check(pruned, shape).parameters()) < dense


class Odd(nn.Module):
    """What the networks of the paper have not: biases before a sum, layers used twice, softmax, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 6, 3)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.wide, self.again, self.shared = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.a(x) + self.b(x)).relu()
        x = self.twice(torch.relu(self.twice(x)) + x).softmax(dim=1)
        x = self.shared(self.wide(self.grouped(x)))
        x = self.shared(self.again(x)).flatten(2).amax(2)
        return self.head(torch.relu(self.inner(x)) + 1)


def test_a_network_of_other_operations():
    torch.manual_seed(0)
    model = Odd()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.grouped.weight, std=3)
    for seed in range(4):
        pruned = prune_at_random(bake(model), seed=seed)
        kept = kept_channels(pruned)
        assert kept.keys() == {"wide", "again", "inner", "head"}
        check(pruned)


@pytest.mark.parametrize(
    "made",
    [{"between": [a]} for a in ACTIVATIONS]
    + [{"flatten": f} for f in FLATTENS.values()]
    + [{"between": [nn.Conv2d(4, 4, 1), ACTIVATIONS[1]], "flatten": FLATTENS["constant"]}],
)
def test_activations_and_flat_views_shrink_with_their_layers(made):
    torch.manual_seed(0)
    model = Between(*made.get("between", ()), **{k: v for k, v in made.items() if k == "flatten"})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for seed in range(3):
        smaller = check(prune_at_random(bake(model), (1, 2, 2), seed), (1, 2, 2))
        batch = torch.export.Dim("batch")
        program = torch.export.export(smaller, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=({0: batch},)).module()
        x = torch.rand(3, 1, 2, 2)
        torch.testing.assert_close(program(x), smaller(x))


@pytest.fixture
def pruned(narrow):
    return Checkpoint(None, prune_at_random(narrow(), seed=2), HEADER)


@pytest.mark.usefixtures("tiny_network")
def test_a_file_of_ours_gives_the_smaller_network_back(tmp_path, pruned, batch):
    kept = kept_channels(pruned.model)
    smaller = shrink(pruned.model, IMAGE, kept)
    path = tmp_path / "small.safetensors"
    save_exported(path, smaller, pruned, kept)
    loaded = load_exported(path)
    with torch.no_grad():
        assert torch.equal(loaded(batch[0]), smaller(batch[0]))
    assert path.stat().st_size < 0.75 * 4 * sum(p.numel() for p in bake(pruned.model).parameters()) + 2000


def test_a_program_of_torch_export_takes_any_number_of_images(tmp_path, pruned, batch):
    kept = kept_channels(pruned.model)
    path = tmp_path / "small.pt2"
    save_exported(path, shrink(pruned.model, IMAGE, kept), pruned, kept)
    program = torch.export.load(path).module()
    with torch.no_grad():
        for n in (1, 3, 8):
            torch.testing.assert_close(program(batch[0][:n]), pruned.model(batch[0][:n]), atol=1e-5, rtol=0)


def test_a_finetuned_mask_keeps_the_same_channels(pruned):
    before = kept_channels(pruned.model)
    after = kept_channels(fix_masks(pruned.model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    check(pruned.model)


def test_what_would_not_shrink_is_refused(narrow):
    with pytest.raises(InputError, match="drops single weights"):
        kept_channels(attach(narrow(), 0.5))
    for model in (narrow(), attach(narrow(), 1.0)):
        with pytest.raises(InputError, match="no channel is pruned"):
            kept_channels(model)


def test_channels_of_another_network_are_refused(narrow):
    for kept in (
        {"conv3": torch.ones(4)},
        {"conv2": torch.ones(5)},
        {"conv2": torch.zeros(4)},
    ):
        with pytest.raises(InputError, match="is no layer of this network"):
            shrink(narrow(), IMAGE, {name: bits.bool() for name, bits in kept.items()})


@pytest.mark.usefixtures("tiny_network")
def test_files_that_hold_no_exported_network_are_refused(tmp_path, pruned):
    path = tmp_path / "file.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_exported(path)
    save_checkpoint(path, pruned.model, HEADER)
    with pytest.raises(InputError, match=r"file\.safetensors: not an exported network"):
        load_exported(path)
    kept = kept_channels(pruned.model)
    smaller = shrink(pruned.model, IMAGE, kept)
    for wrong in ({"conv9": kept["conv2"]}, {**kept, "linear": torch.ones(32).bool()}, {"conv2": torch.zeros(4)}):
        save_exported(path, smaller, pruned, wrong)
        with pytest.raises(InputError, match=r"file\.safetensors: "):
            load_exported(path)
    save_exported(path, smaller, pruned, kept)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        load_exported(path)
    with pytest.raises(InputError, match=r"name it \.safetensors"):
        save_exported(tmp_path / "file.onnx", smaller, pruned, kept)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, new_run, data, tiny_network):
    """A run of hydra-channels and one of hydra, on digits' shape, searched but not finetuned."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("hydra-channels", "hydra"):
        run = new_run(
            folder / name,
            data={"name": "digits"},
            method={"name": name, "flops_reduction": 2 if name != "hydra" else None},
            pretrain={"epochs": 1},
            prune={"epochs": 1},
        )
        stages = Stages(run, data)
        stages.pretrain()
        stages.prune()
    return folder


def test_the_command_reports_what_it_wrote(tmp_path, runs, batch):
    out = tmp_path / "out" / "small.safetensors"
    arguments = ["export", str(runs / "hydra-channels"), "--out", str(out), "--rounds", "1", "--json", "-"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    smaller, masked = load_exported(out), load_checkpoint(runs / "hydra-channels" / "ckpt" / "prune-best.safetensors")
    assert record["max_difference"] <= 1e-5
    assert record["images"] == 128
    dense = bake(masked.model)
    assert record["flops"] == {"dense": measured_flops(dense), "exported": measured_flops(smaller)}
    assert record["parameters"]["exported"] == sum(p.numel() for p in smaller.parameters())
    assert record["flops"]["exported"] <= record["flops"]["dense"] / 2
    with torch.no_grad():
        torch.testing.assert_close(smaller(batch[0]), masked.model(batch[0]), atol=1e-5, rtol=0)


def test_the_command_writes_nothing_that_differs(tmp_path, runs, monkeypatch):
    def spoiled(model, shape, kept):
        smaller = shrink(model, shape, kept)
        smaller.linear.bias.data += 1e-3
        return smaller

    monkeypatch.setattr("s2ap_diag.commands.export.shrink", spoiled)
    out = tmp_path / "small.safetensors"
    result = CliRunner().invoke(main, ["export", str(runs / "hydra-channels"), "--out", str(out)])
    assert (result.exit_code, out.exists()) == (2, False)
    assert "differ by 0.001" in result.stderr


def test_the_command_refuses_in_one_line(tmp_path, runs):
    def refused(run, out):
        result = CliRunner().invoke(main, ["export", str(run), "--out", str(tmp_path / out)])
        assert result.exit_code == 2
        assert not (tmp_path / out).exists()
        (line,) = result.stderr.splitlines()
        return line

    line = refused(runs / "hydra", "small.safetensors")
    assert "prune-best.safetensors" in line
    assert "nothing would shrink" in line
    assert "name it .safetensors" in refused(runs / "hydra-channels", "small.bin")
    assert "not a run directory" in refused(tmp_path, "small.pt2")
    assert "nothing would shrink" in refused(runs / "hydra-channels" / "ckpt" / "pretrain.safetensors", "small.pt2")


def test_the_command_needs_a_pruned_network(tmp_path, new_run):
    new_run(tmp_path / "run")
    result = CliRunner().invoke(main, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "small.pt2")])
    assert result.exit_code == 2
    assert "has no pruned network yet" in result.stderr
