"""What an evaluation attacks is the network that it was given, folded or not."""

import copy
import gc
import logging
import weakref
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import EvaluationSettings
from s2ap_core.masks.masking import bake
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.training.constant_convolution import ConstantConvolution
from s2ap_core.training.evaluation import evaluate
from s2ap_core.training.folding import attacked, folded
from tests.tiny import Tiny


class Plain(Tiny):
    """With statistics and affine parameters that folding has to take over."""

    def __init__(self) -> None:
        super().__init__()
        self.bn3 = nn.BatchNorm2d(8)
        for index, norm in enumerate(m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            rng = torch.Generator().manual_seed(index)
            for tensor in (norm.running_mean, norm.bias.data, norm.running_var, norm.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
        self.square = nn.Conv2d(8, 8, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn3(self.square(self.features(x)))).flatten(1))


class CalledTwice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn3(self.square(self.features(x))))
        return self.linear(F.relu(self.bn2(self.square(x))).flatten(1))


class WeightReadElsewhere(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn3(self.square(self.features(x))))
        return self.linear(F.conv2d(x, self.square.weight).flatten(1))


class OutputReadElsewhere(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.square(self.features(x))
        return self.linear((x + self.bn3(x)).flatten(1))


class OtherActivations(Plain):
    """Written in several ways; what is called relu need not be one."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.cut = nn.Tanh(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        x = self.cut(self.bn3(self.square(x)))
        return self.linear((x + self.square(x).relu()).flatten(1))


class AsksForItsLength(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).reshape(len(x), -1))


class CallsAPartOfAPart(Plain):
    """A trace holds the outer part itself, so that what lies in it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = Outer()

    def forward(self, x: Tensor) -> Tensor:
        x = self.outer(self.features(x))
        return self.linear(F.relu(self.bn3(self.outer.conv(x))).flatten(1))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


class Decides(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class RaisesOfItsOwn(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise KeyError(x)
        return super().forward(x)


class Views(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.linear(x.view(x.shape[0], -1))


class Draws(Plain):
    """A trace takes what it draws for a constant: another network, which no look at the graph tells."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * torch.rand(1, 1, 8, 8))


def made(kind: type[Plain]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.fixture
def images(data) -> Tensor:
    return next(data.batches("test", 30)).x


NORMS = {CalledTwice: 2, WeightReadElsewhere: 1, OutputReadElsewhere: 1, OtherActivations: 1, Plain: 0}


@pytest.mark.parametrize("kind", [*NORMS, AsksForItsLength, Decides, RaisesOfItsOwn, Views])
def test_logits_and_accuracy_are_those_of_the_network(kind, data, images, caplog):
    model = made(kind)
    expected, state = model(images), copy.deepcopy(model.state_dict())
    strides = [p.stride() for p in model.parameters()]
    torch.testing.assert_close(folded(model, images[:4])(images), expected, rtol=1e-4, atol=1e-4)
    found = evaluate(model, data, EvaluationSettings(attack="none"), eps=Fraction(0))
    assert found.clean.tolist() == (expected.argmax(1) == next(data.batches("test", 30)).y).tolist()
    assert not caplog.records
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.stride() for p in model.parameters()] == strides


# Constant convolutions, and how many of them cut at 0.
CONSTANT = {
    CalledTwice: (2, 2),
    WeightReadElsewhere: (2, 2),
    OutputReadElsewhere: (3, 2),
    OtherActivations: (2, 1),
    Plain: (3, 3),
}


@pytest.mark.parametrize(("kind", "left"), NORMS.items())
def test_what_can_be_folded_is(kind, left, images):
    found = folded(made(kind), images)
    called = [found.get_submodule(node.target) for node in found.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in called) == left
    constant = [module for module in called if isinstance(module, ConstantConvolution)]
    assert (len(constant), sum(module.relu for module in constant)) == CONSTANT[kind]
    activations = [type(module) for module in called if isinstance(module, nn.Tanh | nn.ReLU)]
    assert activations == ([nn.Tanh, nn.ReLU] if kind is OtherActivations else [])


@pytest.mark.parametrize("kind", [AsksForItsLength, Decides, RaisesOfItsOwn, Views])
def test_what_cannot_be_traced_or_laid_out_is_evaluated_as_it_is(kind, images):
    model = made(kind)
    assert folded(model, images) is model


@pytest.mark.parametrize(("kind", "falls_back"), [(Draws, True), (Plain, False)])
def test_other_logits_on_the_first_batch_are_said_in_a_line(kind, falls_back, images, caplog):
    model = made(kind)
    assert (folded(model, images) is model) is falls_back
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * falls_back
    assert all("of their range: the network is evaluated as it is" in r.message for r in caplog.records)


class OwnConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class HasOwnConvolution(Plain):
    def __init__(self) -> None:
        super().__init__()
        conv = self.conv2
        self.conv2 = OwnConvolution(conv.in_channels, conv.out_channels, 3, conv.stride, conv.padding)


@pytest.mark.parametrize(
    "kind", [*NORMS, CallsAPartOfAPart, HasOwnConvolution, AsksForItsLength, Decides, RaisesOfItsOwn, Views, Draws]
)
def test_an_attack_follows_masks_weights_and_statistics(kind, images):
    torch.manual_seed(0)
    model = kind()
    build_method(MethodSettings(keep=0.5)).attach(model, torch.Generator().manual_seed(0))

    def logits(network: nn.Module) -> Tensor:
        torch.manual_seed(3)
        return network(images)

    names = [name for name, _ in model.named_parameters()]
    for _ in range(2):
        state = torch.get_rng_state()
        with attacked(model, images) as network, torch.no_grad():
            assert torch.equal(torch.get_rng_state(), state)
            found = logits(network)
        assert [name for name, _ in model.named_parameters()] == names
        torch.testing.assert_close(found, logits(bake(model).eval()), rtol=1e-4, atol=1e-4)
        with torch.no_grad():  # as an update does, in place
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.flatten().roll(1).view_as(tensor))
    assert model.training


@pytest.mark.parametrize(
    ("kind", "left"),
    [(Plain, 0), (OutputReadElsewhere, 1), (HasOwnConvolution, 1), (WeightReadElsewhere, 3), (Draws, 3)],
)
def test_an_attack_spares_the_normalisations_of_a_masked_network(kind, left, images):
    model = kind()
    build_method(MethodSettings(keep=0.5)).attach(model, torch.Generator().manual_seed(0))
    called: list[nn.Module] = []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with attacked(model, images) as network, torch.no_grad():
        for norm in norms:
            norm.register_forward_hook(lambda module, inputs, output: called.append(module))
        network(images)
    assert len(called) == left
    with attacked(model, images) as network:  # or a hook would not be called
        assert network is model


def test_an_attack_sees_a_part_that_was_replaced_and_keeps_no_network_alive(images):
    model = Plain().eval()
    for _ in range(2):
        with attacked(model, images) as network, torch.no_grad():
            torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)
        model.square = nn.Conv2d(8, 8, 1)
    gone = weakref.ref(model)
    del model, network
    gc.collect()
    assert gone() is None


def test_an_attack_follows_another_kind_of_numbers_and_holds_no_layout_after(images, monkeypatch):
    monkeypatch.setattr("s2ap_core.training.constant_convolution.LARGE", 0)
    model = Plain().eval()
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), images.to(dtype)
        with attacked(model, x) as network:
            torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
            ours = [module for module in network.modules() if isinstance(module, ConstantConvolution)]
            assert len(ours) == 3
            assert all(bool(module.laid_out) == (dtype == torch.float32) for module in ours)
        assert not any(module.laid_out for module in ours)
