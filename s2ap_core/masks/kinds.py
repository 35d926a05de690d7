"""The kinds of layers that can be masked, and which dimensions of their weights are channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

MASKABLE = (nn.Linear, *CONVOLUTIONS)
"""Layers whose ``weight`` can be masked."""


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Name the parameters of a module itself that can be masked.

    The rows of an attention's ``in_proj_weight`` are those of queries, keys and values, one third each; its output
    projection is a linear layer of its own. An embedding's rows are what it looks up: its input channels. One that
    changes its rows in place (``max_norm``) or has sparse gradients has no weight that could be masked.
    """
    if isinstance(module, nn.Embedding):
        return () if module.sparse or module.max_norm is not None else ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        packed = module.kdim == module.vdim == module.embed_dim
        return ("in_proj_weight",) if packed else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ("weight",) if isinstance(module, MASKABLE) else ()


def input_of(arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """Return the tensor that a module of :data:`MASKABLE` is called with, by its place or as ``input``."""
    given: Tensor = arguments[0] if arguments else named["input"]
    return given


def layer_name(weight: str) -> str:
    """Name a layer: as its weight is named in files, without what all weights are called.

    >>> layer_name("conv1.weight"), layer_name("attn.in_proj_weight")
    ('conv1', 'attn.in_proj')
    """
    return weight.removesuffix("weight")[:-1]


@dataclass(frozen=True)
class Layer:
    """A weight that can be masked, and the module that computes with it.

    Attributes:
        path: the module's name in the network.
        module: the module.
        parameter: what the module calls the weight; the name ends in ``weight``.

    >>> Layer("up", nn.ConvTranspose2d(4, 6, 3), "weight").tensor("scores")
    'up.scores'
    >>> Layer("attn", nn.MultiheadAttention(4, 2), "in_proj_weight").tensor("scores")
    'attn.in_proj_scores'
    """

    path: str
    module: nn.Module
    parameter: str

    @property
    def name(self) -> str:
        """The layer's name, see :func:`layer_name`."""
        return layer_name(self.tensor("weight"))

    def tensor(self, kind: str) -> str:
        """Name a tensor of the layer in files: its ``weight``, or ``scores``, ``mask`` and so on beside it."""
        return f"{self.path}.{self.parameter}".removeprefix(".").removesuffix("weight") + kind

    @property
    def weight(self) -> Tensor:
        """The weight that the module computes with, masked where it is masked."""
        weight = getattr(self.module, self.parameter)
        assert isinstance(weight, Tensor)
        return weight

    @property
    def input_dim(self) -> int:
        """The dimension of the weight that runs over input channels, of a group where there are several; 0 or 1.

        The other one runs over output channels.
        """
        return 0 if isinstance(self.module, (*TRANSPOSED, nn.Embedding)) else 1

    @property
    def fan_in(self) -> int:
        """Number of weights that each output channel has."""
        return self.by_output(self.weight)[0].numel()

    def by_output(self, entries: Tensor) -> Tensor:
        """Arrange a tensor of the weight's shape by output channel, [C_out, ...]; the rest are that channel's."""
        return entries if self.input_dim == 1 else self._across(entries)

    def by_input(self, entries: Tensor) -> Tensor:
        """Arrange a tensor of the weight's shape by input channel, [C_in, ...]."""
        return entries if self.input_dim == 0 else self._across(entries)

    def _across(self, entries: Tensor) -> Tensor:
        """Bring the channels of dimension 1, of each group, before those of dimension 0."""
        across: Tensor = entries.unflatten(0, (self._groups, -1)).transpose(1, 2).flatten(0, 1)
        return across

    def spread(self, channels: Tensor, like: Tensor) -> Tensor:
        """Give each entry the value of its output channel.

        Args:
            channels: [C_out], or as many as :meth:`by_output` makes of ``like``.
            like: of the weight's shape, or of one that broadcasts to it.

        Returns:
            A tensor of the shape of ``like``.
        """
        if self.input_dim == 1:
            return channels.view(-1, *(1,) * (like.dim() - 1)).expand(like.shape)
        grouped = like.unflatten(0, (self._groups, -1))
        return channels.view(self._groups, 1, -1, *(1,) * (like.dim() - 2)).expand(grouped.shape).flatten(0, 1)

    @property
    def _groups(self) -> int:
        return int(getattr(self.module, "groups", 1))
