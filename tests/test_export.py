"""export.py: what is published loads everywhere and says what it is."""

import base64
import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
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


def test_several_exports_at_once_publish_whole_files_only(published, folder_run):
    """Three processes, two networks, one folder: each file has the hash in its name."""
    out, processes = published[0].parent, []
    for stage in ("finetuned", "teacher", "finetuned"):
        if (process := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                for _ in range(5):
                    export.main([str(folder_run / stage), str(out)])
                os._exit(0)
            os._exit(1)
        processes.append(process)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0, 0]
    weights = sorted(out.glob("*.pth"))
    assert len(weights) == 2 and {path.suffix for path in out.iterdir()} == {".pth", ".md"}
    for path in weights:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem.endswith(digest[:8]) and digest in path.with_suffix(".md").read_text()


def test_an_export_that_fails_leaves_nothing(publish, folder_run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "write_text", full)
    code, error = publish(folder_run / "finetuned", tmp_path)
    assert (code, error.count("\n")) == (1, 1) and not list(tmp_path.iterdir())


STRANGE = "a|b*c<script>`d`\n# e\x1b[31m[f](g): 'h' \"i"


def test_strangers_names_are_shown_in_the_card_and_obeyed_nowhere(
    publish, run_copy, tmp_path, monkeypatch
):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("report.model_card.display_name", lambda *_: STRANGE)
    assert publish(run_copy / "finetuned", tmp_path, "--hub-folder") == (0, "")
    text = (tmp_path / "README.md").read_text()
    assert "\x1b" not in text and "\n# e" not in text
    shown = r"""a\|b\*c\<script\>\`d\`\\n\# e\\x1b\[31m\[f\](g): 'h' "i"""
    assert f"- Data set {shown}, images" in text
    (first, _) = hub.ModelCard.load(tmp_path / "README.md").data.eval_results
    assert first.dataset_name == r"""a|b*c<script>`d`\n# e\x1b[31m[f](g): 'h' "i"""


def test_a_data_sets_name_makes_a_plain_file_name(publish, run_copy, tmp_path):
    result = read_record(run_copy / "finetuned" / "result.json")
    for number, name in enumerate((STRANGE, "../../up", "\N{SNOWMAN}" * 300, "caf\u00e9")):
        write_json(run_copy / "finetuned" / "result.json", sealed({**result, "dataset": name}))
        out = tmp_path / str(number)
        assert publish(run_copy / "finetuned", out)[0] == 0
        assert all(re.fullmatch(r"[\w.-]{9,90}", path.name) for path in out.iterdir())


def test_the_card_tells_data_selection_metrics_and_licence(published, folder_run, folder_data):
    card = published[1].read_text()
    for stage in ("teacher", "student", "finetuned"):
        result = read_record(folder_run / stage / "result.json")
        assert f"| {result['val_top1']:.2f} | {result['test_top1']:.2f} |" in card
    selected = read_record(folder_run / "samples" / "result.json")
    for fact in (
        f"Data set {folder_data.name}, images 8 px square",
        "3 images a class; 2 a class are validation images",
        "Pool: heldout (36)",
        f"{selected['selected']:,} rows of {selected['unique_images']:,} images",
        "P=2 best classes",
        "Right labels: ",
        "seed 0",
        "mit.",
    ):
        assert fact in card
    assert str(folder_run) not in card


def test_a_teachers_card_has_no_selection(publish, folder_run, tmp_path):
    assert publish(folder_run / "teacher", tmp_path, "--licence", "CC0 1.0")[0] == 0
    (card,) = tmp_path.glob("*.md")
    assert "None: this network saw labelled images only." in card.read_text()
    assert "cc0-1.0." in card.read_text()  # as the Hub spells it


@pytest.fixture
def started_from(run_copy):
    """started_from(weights, ...) -> the run, as if its teacher had been trained from weights."""

    def change(name, **inputs):
        config = read_record(run_copy / "teacher" / "config.json")
        config = {**config, "weights": name, "inputs": {**config["inputs"], **inputs}}
        write_json(run_copy / "teacher" / "config.json", sealed(config))
        result = read_record(run_copy / "teacher" / "result.json")
        result["files"] = hashes_of(run_copy / "teacher")
        write_json(run_copy / "teacher" / "result.json", sealed(result))
        return run_copy

    return change


@pytest.mark.parametrize(
    ("start", "said", "licence"),
    [
        (
            "swsl_resnet18",
            "weights resnet18_swsl, under cc-by-nc-4.0: no commercial use",
            "cc-by-nc-4.0",
        ),
        (
            "dir/semi_supervised_resnet50-08389792.pth",
            "resnet50_ssl, under cc-by-nc-4.0",
            "cc-by-nc-4.0",
        ),
        ("timm/resnet50.fb_swsl_ig1b_ft_in1k", "resnet50_swsl, under cc-by-nc", "cc-by-nc-4.0"),
        ("timm/convnextv2_tiny", "convnextv2_tiny, under cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("timm/resnet10t", "weights resnet10t, under apache-2.0.", "apache-2.0"),
        ("dir/mine.pth", "weights mine.pth, whose licence holds too", "unknown"),
        ("resnet18_imagenet", "weights resnet18_imagenet, whose licence holds too", "unknown"),
    ],
)
def test_the_licence_of_the_first_weights_is_the_students(
    publish, started_from, tmp_path, start, said, licence
):
    run = started_from(start)
    assert publish(run / "finetuned", tmp_path / "out")[0] == 0
    (card,) = (tmp_path / "out").glob("*.md")
    assert said in card.read_text() and f"\n{licence}.  The images" in card.read_text()
    code, error = publish(run / "finetuned", tmp_path / "free", "--licence", "mit")
    if "-nc" in licence:
        assert code == 2 and "under cc-by-nc-4.0, no commercial use" in error
        assert not (tmp_path / "free").exists()
    else:
        assert code == 0  # the publisher knows better


def test_the_strictest_licence_of_several_starts_is_the_networks():
    free, not_at_hand, forbids = "timm/resnet10t", "", "resnet18_swsl"
    assert export.settle_licence(None, []) == "mit"
    assert export.settle_licence(None, [free]) == "apache-2.0"
    assert export.settle_licence(None, [free, not_at_hand]) == "unknown"
    assert export.settle_licence(None, [free, not_at_hand, forbids]) == "cc-by-nc-4.0"
    assert export.settle_licence("cc-by-nc-sa-4.0", [forbids]) == "cc-by-nc-sa-4.0"


def test_the_licence_comes_through_a_stage_that_the_training_started_from(
    publish, started_from, folder_run, tmp_path
):
    """As in semi-weak supervision: the teacher of the tags' teacher had published weights."""
    first = started_from("resnet18_swsl") / "teacher"
    first = first.rename(tmp_path / "weak")
    shutil.copytree(folder_run / "teacher", tmp_path / "run" / "teacher")
    sha256 = hashlib.sha256((first / "model.pt").read_bytes()).hexdigest()
    for same, licence in ((sha256, "cc-by-nc-4.0"), ("0" * 64, "unknown")):
        run = started_from(str(first), weights={"sha256": same})
        assert publish(run / "finetuned", tmp_path / licence)[0] == 0
        assert f"\n{licence}.  The" in next((tmp_path / licence).glob("*.md")).read_text()


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
    hub = pytest.importorskip("huggingface_hub")
    assert publish(folder_run / "finetuned", tmp_path, "--hub-folder") == (0, "")
    names = {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet8" and config["num_classes"] == 4
    labels = ["ant", "bee", "crab", "dove"]  # transformers looks at the root, timm below it
    assert config["label_names"] == config["pretrained_cfg"]["label_names"] == labels
    card = hub.ModelCard.load(tmp_path / "README.md")
    result = read_record(folder_run / "finetuned" / "result.json")
    assert (card.data.license, card.data.library_name) == ("mit", "pytorch")
    assert [(one.metric_name, one.metric_value, one.dataset_split) for one in
            card.data.eval_results] == [
        ("test top-1", round(result["test_top1"], 2), "test"),
        ("test top-5", round(result["test_top5"], 2), "test"),
    ]  # fmt: skip
    top1 = card.data.eval_results[0]
    low, high = top1.metric_args["interval_95"]
    assert low < top1.metric_value < high and top1.metric_args["images"] == result["test_images"]


def hub_stub(requests, refusal=None):
    """A server on loopback that answers as the model hub does; requests: filled with (path, body).

    refusal: the status of its answer to a commit
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, body))
            address = f"http://{self.headers['Host']}/me/mine"
            answer = {"url": address}
            if self.path.endswith("/preupload/main"):
                files = [{**one, "uploadMode": "regular"} for one in json.loads(body)["files"]]
                answer = {"files": [{**one, "shouldIgnore": False} for one in files]}
            elif self.path.endswith("/commit/main"):
                answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1"}
            self.send_response(refusal if refusal and "commit" in self.path else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def serve_hub(monkeypatch):
    """serve_hub(status) -> the requests to a stub, which the client takes for the hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    client = pytest.importorskip("huggingface_hub.hf_api").api
    servers = []

    def serve(refusal=None):
        requests = []
        server = hub_stub(requests, refusal)
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(client, "endpoint", address)
        return requests

    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_hub_folder_is_pushed_with_the_hubs_own_client(publish, serve_hub, folder_run, tmp_path):
    requests = serve_hub()
    (tmp_path / "private.txt").write_text("stays here")
    code, error = publish(folder_run / "finetuned", tmp_path, "--push", "me/mine")
    assert (code, error) == (0, "")
    paths = [path for path, _ in requests]
    assert paths[:2] == ["/api/repos/create", "/api/validate-yaml"]  # the hub looks at the card
    assert paths[-1] == "/api/models/me/mine/commit/main"
    lines = [json.loads(line)["value"] for line in requests[-1][1].splitlines()]
    sent = {line["path"]: base64.b64decode(line["content"]) for line in lines if "path" in line}
    names = {"config.json", "model.safetensors", "README.md"}
    assert sent == {name: (tmp_path / name).read_bytes() for name in names}


def test_a_push_that_the_hub_refuses_is_one_line_and_the_folder_stays(
    publish, serve_hub, folder_run, tmp_path
):
    serve_hub(403)
    code, error = publish(folder_run / "finetuned", tmp_path / "out", "--push", "me/mine")
    assert (code, error.count("\n")) == (1, 1) and "is written, but not uploaded" in error
    assert (tmp_path / "out" / "model.safetensors").exists()
    code, error = publish(folder_run / "finetuned", tmp_path / "new", "--push", "me/mi ne")
    assert (code, error.count("\n")) == (2, 1) and "me/mi ne" in error
    assert not (tmp_path / "new").exists()


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
