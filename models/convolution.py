"""Convolutions that a CPU computes faster as a matrix product.

oneDNN's convolutions are slow on small maps: they take more than half of a training step of
ResNet-50 at 64 px.  `benchmarks/throughput.py --switches` has what the product gains.
"""

import torch
from torch import nn
from torch.nn import functional as F

WIDE = 128  # input channels
SMALL = 4  # pixels a side of a map that a 3 x 3 kernel reads


class _Product(nn.Conv2d):
    """A 1 x 1 or 3 x 3 convolution, a matrix product where that is faster."""

    def forward(self, image):
        """(B,C,H,W) -> (B,D,H/stride,W/stride); channels_last on both sides costs no copy."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 3 and image.shape[-1] > SMALL:
            return super().forward(image)
        image = image.permute(0, 2, 3, 1)
        if kernel == 1:
            columns, weight = image[:, ::stride, ::stride], self.weight.flatten(1)
        else:
            height, width = image.shape[1:3]
            image = F.pad(image, (0, 0, 1, 1, 1, 1))
            columns = torch.cat(
                [
                    image[:, y : y + height : stride, x : x + width : stride]
                    for y in range(3)
                    for x in range(3)
                ],
                dim=-1,
            )  # (B, H/stride, W/stride, 9 * C)
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (D, 9 * C)
        product = F.linear(columns.flatten(0, 2), weight, self.bias)
        return product.unflatten(0, columns.shape[:3]).permute(0, 3, 1, 2)


def use_products(network):
    """Let the wide convolutions of a network on a CPU be matrix products, in place.

    Their weights and names stay; results differ by rounding.
    """
    if next(network.parameters()).device.type != "cpu":
        return
    for module in network.modules():
        kernel = getattr(module, "kernel_size", None)
        if type(module) is nn.Conv2d and kernel in ((1, 1), (3, 3)):
            same = module.padding == (kernel[0] // 2,) * 2 and module.padding_mode == "zeros"
            plain = module.groups == 1 and module.dilation == (1, 1)
            if same and plain and module.in_channels >= WIDE:
                module.__class__ = _Product
