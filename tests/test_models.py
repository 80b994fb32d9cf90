"""Networks by name."""

import pytest
import torch
import torchvision

from models.networks import MODELS, build_model
from models.small_resnet import SmallResNet

SMALL = sorted(
    name
    for name, build in MODELS.items()
    if build.func is SmallResNet and not name.startswith(("resnet44", "resnet56", "resnet110"))
)
# one of each kind: basic block, bottleneck, grouped bottleneck; each stem
TORCHVISION = ["resnet18", "resnext50_32x4d", "resnet18-cifar"]  # resnet50: below


def logits_of(name, side, dtype=None, classes=7):
    torch.manual_seed(0)
    model = build_model(name, classes).eval()
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        return model(images)


def test_the_small_networks_are_the_documented_ones():
    assert {"resnet8", "resnet14", "resnet20", "resnet8-w24", "resnet20-w64"} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_every_small_network_gives_float32_logits(name):
    logits = logits_of(name, 8)
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", TORCHVISION)
def test_each_kind_of_torchvision_network_gives_float32_logits(name):
    logits = logits_of(name, 32 if "cifar" not in name else 8)
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet8", "resnet8-w24", "resnet18", "resnet18-cifar"])
def test_logits_stay_float32_under_bf16_autocast(name):
    logits = logits_of(name, 8, torch.bfloat16)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # computed, not only stored, so


@pytest.mark.parametrize("name", ["resnet14", "resnet8-w24"])
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build_model(name, 3)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="unknown model 'resnet51'; did you mean") as error:
        build_model("resnet51", 10)
    assert all(name in str(error.value) for name in MODELS)


@pytest.mark.parametrize("depth", [-4, 2, 9, 49, 18])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth {depth} "):
        SmallResNet(depth, 16, 10)


@pytest.mark.parametrize("depth, width", [(8, 16), (20, 16), (14, 24)])
def test_a_small_network_has_as_many_layers_as_its_name_says(depth, width):
    suffix = "" if width == 16 else f"-w{width}"
    model = build_model(f"resnet{depth}{suffix}", 10)
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and "shortcut" not in name
    ]
    assert len(layers) == depth
    assert layers[0].out_channels == width
    assert layers[-1].in_features == 4 * width


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_load_strictly_and_give_torchvision_logits(name):
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=11).eval()
    torch.manual_seed(2)
    ours = build_model(name, 11).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_every_large_network_has_torchvisions_shapes():
    known = torchvision.models.list_models()
    with torch.device("meta"):  # shapes without memory
        for name in sorted(set(MODELS) & set(known)):
            theirs = torchvision.models.get_model(name, weights=None, num_classes=5).state_dict()
            shapes = {key: value.shape for key, value in theirs.items()}
            for stem, first in (("", (64, 3, 7, 7)), ("-cifar", (64, 3, 3, 3))):
                ours = build_model(name + stem, 5).state_dict()
                shapes["conv1.weight"] = first
                assert {key: value.shape for key, value in ours.items()} == shapes


def test_the_cifar_stem_keeps_a_small_image_at_its_size():
    seen = {}
    model = build_model("resnet18-cifar", 4).eval()
    model.layer1.register_forward_hook(lambda _, __, out: seen.update(shape=out.shape))
    with torch.inference_mode():
        model(torch.randn(1, 3, 32, 32))
    assert seen["shape"] == (1, 64, 32, 32)


def test_the_same_seed_builds_the_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build_model("resnet8", 5).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
