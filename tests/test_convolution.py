"""The product is the convolution, and only wide layers become one (models/convolution.py)."""

import pytest
import torch
from torch import nn

from models.convolution import WIDE, use_products


def of_both(layer, side):
    """[output, gradients of image, weight, bias] of the layer, then of the same as a product."""
    image = torch.randn(3, WIDE, side, side, dtype=torch.float64)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    wanted = torch.randn_like(layer(image))
    results = []
    for change in (lambda layer: None, use_products):
        change(layer)
        output = layer(image)
        results.append([output, *torch.autograd.grad(output, [image, *layer.parameters()], wanted)])
    return results


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "bias"), [(1, True), (1, False), (3, True), (3, False)])
def test_a_product_has_the_output_and_gradients_of_its_convolution(kernel, bias, stride, side):
    layer = nn.Conv2d(WIDE, 6, kernel, stride, kernel // 2, bias=bias).double()
    for ours, theirs in zip(*of_both(layer, side), strict=True):
        assert torch.allclose(ours, theirs) and ours.shape == theirs.shape
    assert type(layer) is not nn.Conv2d


def test_no_convolution_of_another_kind_is_touched():
    others = nn.Sequential(
        nn.Conv2d(WIDE - 1, 6, 1),
        nn.Conv2d(WIDE, 6, 5, padding=2),
        nn.Conv2d(WIDE, 6, 3),
        nn.Conv2d(WIDE, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(WIDE, 6, 3, padding=2, dilation=2),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=2),
        nn.Conv2d(WIDE, 6, 1, padding="same"),
    )
    use_products(others)
    others.append(nn.Conv2d(WIDE, 6, 1).to("meta"))
    use_products(others[-1:])  # as on a GPU
    assert all(type(layer) is nn.Conv2d for layer in others)


def test_names_and_weights_stay():
    network = nn.Sequential(nn.Conv2d(WIDE, 6, 1), nn.ReLU())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    use_products(network)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert [*before] == [*network.state_dict()]
