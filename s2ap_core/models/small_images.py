"""How the convolutional networks halve small images: never to less than 2x2."""

from collections.abc import Sequence

SMALLEST_MAP = 2
"""Height and width, in pixels, that a stride or a pool has to leave, or it is dropped.

On a 1x1 map a padded 3x3 convolution sees data with its middle tap alone: the other eight weights never get a
gradient, and neither do their scores, which keep rates, Hamming distances and gamma's norms count all the same.
"""


def strides_on(size: int, strides: Sequence[int]) -> list[int]:
    """Give the strides of successive stages on maps of ``size`` x ``size`` pixels: 1 where less than 2x2 would be left.

    >>> strides_on(32, (1, 2, 2, 2)), strides_on(8, (1, 2, 2, 2))
    ([1, 2, 2, 2], [1, 2, 2, 1])
    """
    taken = []
    for stride in strides:
        left = -(-size // stride)  # the convolutions are padded
        taken.append(stride if left >= SMALLEST_MAP else 1)
        size = max(left, SMALLEST_MAP)
    return taken
