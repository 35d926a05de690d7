"""Initial weights that the convolutional networks share."""

from torch import nn


def init_convolutions(model: nn.Module) -> None:
    """Draw each convolution from N(0, 2 / fan_out), fan_out = channels out * kernel area (He et al. 2015).

    HYDRA and HARP start VGG, WideResNet and the ImageNet ResNet in this way. Linear layers keep torch's
    default, which follows the fan-in, so that narrow networks train too.
    """
    for module in model.modules():
        # On the meta device torch would import its compiler, a second, to draw nothing.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
