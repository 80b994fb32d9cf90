"""export.py: what is published loads everywhere and says what it is."""

import functools
import hashlib
import json
import os
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import export
from data.augment import Normalise
from engine import predict
from files import write_json
from stages import checkpoint
from stages.folder import hashes_of, read_record, sealed

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def publish(capsys):
    """publish(*arguments) -> exit code, stderr."""

    def publish(*arguments):
        capsys.readouterr()
        try:
            export.main(list(map(str, arguments)))
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return publish


@pytest.fixture
def published(publish, folder_run, tmp_path):
    """The weights and the card of the fine-tuned student."""
    assert publish(folder_run / "finetuned", tmp_path / "out") == (0, "")
    card, weights = sorted((tmp_path / "out").iterdir())
    return weights, card


def test_the_hash_in_the_name_is_the_files(published, folder_data):
    weights, card = published
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.name == f"resnet8_{folder_data.name}-{digest[:8]}.pth"
    assert card.name == f"resnet8_{folder_data.name}-{digest[:8]}.md"
    assert digest in card.read_text()


def test_it_loads_safely_and_holds_the_trained_weights(published, folder_run):
    ours = torch.load(folder_run / "finetuned" / "model.pt", weights_only=True)
    theirs = torch.load(published[0], weights_only=True)
    tensors = theirs.pop("state_dict")
    assert all(torch.equal(tensors[name], x) for name, x in ours.pop("state_dict").items())
    assert all(x.device.type == "cpu" and x.is_contiguous() for x in tensors.values())
    assert theirs == ours


def test_torch_hub_gives_the_same_network(published, folder_run):
    own = checkpoint.load_model(folder_run / "finetuned" / "model.pt")
    model = torch.hub.load(ROOT, "resnet8", source="local", weights=str(published[0]))
    assert model.info["classes"] == ["ant", "bee", "crab", "dove"]
    assert model.info["input_size"] == own.input_size
    assert model.info["metrics"] == own.metrics
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    normalise = Normalise(own.mean, own.std)
    ((_, logits),) = predict(own.model, images, normalise)
    ((_, theirs),) = predict(model.to(memory_format=torch.channels_last), images, normalise)
    torch.testing.assert_close(theirs, logits, rtol=0, atol=0)


def test_torch_hub_replaces_the_head_or_refuses_another_network(published):
    weights = str(published[0])
    trained = torch.load(weights, weights_only=True)["state_dict"]
    model = torch.hub.load(ROOT, "resnet8", source="local", weights=weights, num_classes=9)
    assert model.fc.out_features == 9 and torch.equal(model.conv1.weight, trained["conv1.weight"])
    with pytest.raises(ValueError, match="holds a resnet8, not a resnet14"):
        torch.hub.load(ROOT, "resnet14", source="local", weights=weights)
    Path(weights).write_bytes(Path(weights).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        torch.hub.load(ROOT, "resnet8", source="local", weights=weights)


def test_it_loads_from_a_url_by_its_hash(published, tmp_path, monkeypatch):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=published[0].parent)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    trained = torch.load(published[0], weights_only=True)["state_dict"]
    load = functools.partial(torch.hub.load, ROOT, "resnet8", source="local", progress=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{published[0].name}"
        model = load(weights=url)
        with pytest.raises(ValueError, match="does not end in -<sha256>"):
            load(weights=url.rpartition("/")[0] + "/model.pt")
        server.shutdown()
    assert torch.equal(model.conv1.weight, trained["conv1.weight"])
    assert os.listdir(tmp_path / "hub" / "checkpoints") == [published[0].name]


def test_every_other_script_takes_it(
    publish, published, folder_run, stage_flags, data_flags, step, tmp_path, quick
):
    weights, run = published[0], tmp_path / "run"
    flags = ("--weights", weights, "--learning-rate", "1e-30", "--epochs", "1")
    assert step("teacher", run, *stage_flags["teacher"], *flags) == 0
    first = torch.load(weights, weights_only=True)["state_dict"]
    second = torch.load(run / "teacher" / "model.pt", weights_only=True)["state_dict"]
    assert torch.equal(first["conv1.weight"], second["conv1.weight"])
    shutil.rmtree(run)
    flags = ("--teacher", weights, *data_flags, *stage_flags["samples"])
    assert step("samples", run, *flags) == 0
    assert step("student", run, *stage_flags["student"]) == 0
    assert step("finetuned", run, *stage_flags["finetuned"]) == 0
    shutil.rmtree(tmp_path / "out")
    assert publish(run / "finetuned", tmp_path / "out")[0] == 0
    card = next((tmp_path / "out").glob("*.md")).read_text()
    assert "The teacher was not at hand" in card and str(tmp_path) not in card


def test_two_exports_are_one(publish, published, folder_run):
    before = {path: path.read_bytes() for path in published}
    assert publish(folder_run / "finetuned", published[0].parent)[0] == 0
    assert {path: path.read_bytes() for path in published[0].parent.iterdir()} == before


def test_the_card_tells_data_selection_metrics_and_licence(published, folder_run, folder_data):
    card = published[1].read_text()
    for stage in ("teacher", "student", "finetuned"):
        result = read_record(folder_run / stage / "result.json")
        assert f"| {result['val_top1']:.2f} | {result['test_top1']:.2f} |" in card
    selected = read_record(folder_run / "samples" / "result.json")
    for fact in (
        f"Data set `{folder_data.name}`, images 8 px square",
        "3 images a class; 2 a class are validation images",
        "Pool: heldout (36)",
        f"{selected['selected']:,} rows of {selected['unique_images']:,} images",
        "P=2 best classes",
        "Right labels: ",
        "seed 0",
        "MIT.",
    ):
        assert fact in card
    assert str(folder_run) not in card


def test_a_teachers_card_has_no_selection(publish, folder_run, tmp_path):
    assert publish(folder_run / "teacher", tmp_path, "--licence", "CC0 1.0")[0] == 0
    (card,) = tmp_path.glob("*.md")
    assert "None: this network saw labelled images only." in card.read_text()
    assert "CC0 1.0." in card.read_text()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("swsl_resnet18", "weights resnet18_swsl, under CC-BY-NC 4.0: no commercial use"),
        ("dir/semi_supervised_resnet50-08389792.pth", "weights resnet50_ssl, under CC-BY-NC 4.0"),
        ("dir/mine.pth", "weights mine.pth, whose licence holds too"),
        ("resnet18_imagenet", "weights resnet18_imagenet, whose licence holds too"),
    ],
)
def test_the_licence_of_the_first_weights_is_told(publish, run_copy, tmp_path, start, said):
    config = read_record(run_copy / "teacher" / "config.json")
    write_json(run_copy / "teacher" / "config.json", sealed({**config, "weights": start}))
    result = read_record(run_copy / "teacher" / "result.json")
    result["files"] = hashes_of(run_copy / "teacher")
    write_json(run_copy / "teacher" / "result.json", sealed(result))
    assert publish(run_copy / "finetuned", tmp_path / "out")[0] == 0
    (card,) = (tmp_path / "out").glob("*.md")
    assert said in card.read_text()


def test_what_is_no_trained_stage_is_refused(publish, run_copy, tmp_path):
    out = tmp_path / "out"
    code, error = publish(run_copy / "samples", out)
    assert code == 2 and "has no network" in error
    code, error = publish(tmp_path / "nowhere", out)
    assert code == 2 and "no finished stage" in error
    model = run_copy / "finetuned" / "model.pt"
    model.write_bytes(model.read_bytes()[:-100])
    code, error = publish(run_copy / "finetuned", out)
    assert code == 2 and "is not what step 4 wrote" in error
    assert not out.exists()


SMALL = "--preset demo --input-size 8 --epochs 1 --passes 1 --model resnet8"


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_safetensors_serve_wherever_a_checkpoint_does(publish, folder_run, tmp_path, form, step):
    loaded = pytest.importorskip("safetensors.torch")
    flags = ["--hub-folder"] if form == "hub" else ["--format", "safetensors"]
    assert publish(folder_run / "finetuned", tmp_path / "out", *flags) == (0, "")
    (path,) = (tmp_path / "out").glob("*.safetensors")
    ours = checkpoint.load(folder_run / "finetuned" / "model.pt")
    theirs = checkpoint.load(path)
    tensors = ours.pop("state_dict")
    for found in (theirs.pop("state_dict"), loaded.load_file(path)):  # also by its own loader
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert theirs == ours
    assert step("teacher", tmp_path / "run", SMALL, "--weights", path) == 0
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged|truncated"):
        checkpoint.load(path)


def test_a_hub_folder_says_what_it_holds(publish, folder_run, tmp_path):
    pytest.importorskip("safetensors")
    assert publish(folder_run / "finetuned", tmp_path, "--hub-folder") == (0, "")
    names = {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet8" and config["num_classes"] == 4
    assert config["pretrained_cfg"]["label_names"] == ["ant", "bee", "crab", "dove"]
    head = (tmp_path / "README.md").read_text().split("---")[1]
    result = read_record(folder_run / "finetuned" / "result.json")
    assert "license: mit" in head and f"value: {result['test_top1']:.2f}" in head


@pytest.mark.slow
def test_onnx_gives_torchs_logits(publish, folder_run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert publish(folder_run / "finetuned", tmp_path, "--format", "onnx")[0] == 0
    (path,) = tmp_path.glob("*.onnx")
    images = torch.randn(5, 3, 8, 8)
    model = checkpoint.load_model(folder_run / "finetuned" / "model.pt").model.eval()
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    torch.testing.assert_close(logits, model(images).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form, package", [("safetensors", "safetensors"), ("onnx", "onnx")])
def test_a_missing_package_is_named(publish, folder_run, tmp_path, monkeypatch, form, package):
    for name in (package, f"{package}.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    code, error = publish(folder_run / "finetuned", tmp_path, "--format", form)
    assert code != 0 and f"pip install {package}" in error and not list(tmp_path.iterdir())
