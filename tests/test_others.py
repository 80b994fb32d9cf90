"""Networks of torchvision and timm by their own names, through the four steps."""

import json

import pytest
import torch
import torchvision

from models import hub
from models.networks import MODELS, Float32Linear, build_model, check_name, head_of
from models.weights import rebuild, start_from
from stages import checkpoint

timm = pytest.importorskip("timm")
OTHERS = ("mobilenet_v3_small", "timm/resnet10t", "timm/test_vit")


@pytest.mark.parametrize("name", [*OTHERS, "densenet121", "googlenet", "timm/lcnet_050"])
def test_the_head_is_the_linear_layer_that_gives_the_logits(name):
    model, other = build_model(name, 7), build_model(name, 5).state_dict()
    head, layer = head_of(model)
    assert layer.out_features == 7
    assert sum(isinstance(module, Float32Linear) for module in model.modules()) == 1
    assert start_from(model, other, "five classes")  # the head stays its own
    own = model.state_dict()
    assert own.pop(f"{head}.weight").shape[0] == own.pop(f"{head}.bias").shape[0] == 7
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match="squeezenet1_1 does not end in a linear layer"):
        build_model("squeezenet1_1", 3)


@pytest.mark.parametrize(
    "name, near",
    [
        ("efficientnet_b9", "efficientnet_b"),
        ("resnet21", "resnet20"),
        ("timm/resnet10", "timm/resnet10t"),
    ],
)
def test_an_unknown_name_suggests_near_ones(name, near):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; did you mean .*{near}"):
        check_name(name)


def test_without_timm_its_names_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match="timm/resnet10t needs timm: pip install timm"):
        check_name("timm/resnet10t")


def test_the_weights_that_torchvision_publishes_come_with_their_normalisation(monkeypatch):
    asked = []
    monkeypatch.setattr("models.hub.weights_from_url", lambda url, _: asked.append(url) or {})
    _, (mean, std) = hub.published_weights("vit_b_16")
    assert asked == [torchvision.models.ViT_B_16_Weights.DEFAULT.url]
    assert mean == [0.485, 0.456, 0.406] and std == [0.229, 0.224, 0.225]


def test_an_image_size_that_a_network_does_not_take_is_refused(
    folder_flags, tmp_path, step, capsys
):
    flags = "--model vit_b_32 --input-size 8"
    assert step("teacher", tmp_path, *folder_flags, flags) == 2
    assert "--input-size 8: the network does not take such images" in capsys.readouterr().err
    assert not (tmp_path / "teacher").exists()


@pytest.mark.slow
def test_a_teacher_of_another_kind_teaches_through_the_four_steps(
    folder_flags, stage_flags, tmp_path, step
):
    """timm's vision transformer teaches torchvision's MobileNet, which has no `fc`."""
    teacher = "--input-size 160 --model timm/test_vit --epochs 1"
    assert step("teacher", tmp_path, *folder_flags, teacher) == 0
    assert step("samples", tmp_path, *stage_flags["samples"]) == 0
    student = (*stage_flags["student"], "--model mobilenet_v3_small --epochs 1")
    assert step("student", tmp_path, *student) == 0
    assert step("finetuned", tmp_path, *stage_flags["finetuned"], "--epochs 1") == 0
    result = json.loads((tmp_path / "finetuned" / "result.json").read_text())
    assert result["model"] == "mobilenet_v3_small"
    state = checkpoint.load(tmp_path / "teacher" / "model.pt")
    assert state["library"] == f"timm {timm.__version__}"
    assert head_of(rebuild(state, "model.pt"))[1].out_features == 4


def test_a_network_of_timm_without_an_fc_starts_from_a_file_of_weights(
    folder_flags, tmp_path, step
):
    own = timm.create_model("resnet10t", num_classes=9)
    torch.save(own.state_dict(), tmp_path / "nine.pth")
    flags = ("--model timm/resnet10t --input-size 32 --weights", tmp_path / "nine.pth")
    assert step("teacher", tmp_path, *folder_flags, *flags) == 0


def test_our_names_stay_ours():
    assert "resnet50" in MODELS and type(build_model("resnet20", 3)).__name__ == "SmallResNet"
