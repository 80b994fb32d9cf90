"""The zoo: torch.hub entry points, the published weights' table and download, parity with timm."""

import argparse
import datetime
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import uuid
import zipfile
from collections import defaultdict, deque
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import hubconf
from models import hub as table
from models import weights
from models.networks import MODELS, build_model
from models.weights import start_from

ROOT = Path(__file__).parents[1]
hub = hubconf._hub  # hubconf's own copy of models.hub
download = sys.modules[f"{hub.__package__}.download"]
BOTH = (hub, table)


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", table.SIZES)
def test_parameters_and_multiply_adds_are_those_of_the_built_network(network):
    with FakeTensorMode(), torch.inference_mode():  # shapes without memory or arithmetic
        model = build_model(network, 1000).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    parameters = sum(p.numel() for p in model.parameters())
    assert (parameters, counter.get_total_flops() / 2) == table.SIZES[network]


def shown_rows(first_cell):
    """The rows of the table in docs/zoo.md with this first cell, each a list of cells."""
    lines = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in rows if row[0] == first_cell]


@pytest.mark.parametrize("name", table.ZOO)
def test_the_documentation_shows_the_table(name):
    one = table.ZOO[name]
    parameters, multiply_adds = table.SIZES[one.network]
    assert shown_rows(f"`{name}`") == [[
        f"`{name}`",
        table.SUPERVISION[one.kind],
        f"{parameters / 1e6:.1f} M",
        f"{multiply_adds / 1e9:.1f} G",
        f"{one.top1:.1f} / {one.top5:.1f}",
        f"{one.timm_top1:.2f} / {one.timm_top5:.2f}",
        f"`{one.timm_name}`",
        f"`{one.old_name}`",
        table.LICENCE,
    ]]  # fmt: skip


@pytest.mark.parametrize("name", table.ZOO)
def test_timm_has_the_same_file_under_the_names_of_the_table(name):
    one = table.ZOO[name]
    theirs = timm.get_pretrained_cfg(one.timm_name).to_dict()
    assert theirs["url"] == table.URL + one.file
    assert (theirs["mean"], theirs["std"]) == (table.MEAN, table.STD)
    assert theirs["license"] == "cc-by-nc-4.0"
    resize, crop = table.evaluation_size(name)
    assert (theirs["input_size"], theirs["crop_pct"]) == ((3, crop, crop), crop / resize)
    assert timm.is_model(one.old_name)
    assert {table.hub_name(other) for other in (name, one.timm_name, one.old_name)} == {name}


def test_unknown_weights_list_the_choices():
    with pytest.raises(ValueError, match="unknown weights 'resnet51_ssl'") as error:
        table.hub_name("resnet51_ssl")
    assert all(name in str(error.value) for name in table.HUB)


def random_state(model):
    """Weights for `model` with which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:  # He initialisation
            scale = (2 / tensor[0].numel()) ** 0.5
            state[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif tensor.ndim == 0:
            state[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith("var"):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            state[name] = 0.5 * torch.rand(tensor.shape, generator=generator)
    return state


@pytest.mark.parametrize("network", table.SIZES)
def test_the_same_weights_give_the_same_logits_in_timm(network):
    with torch.device("meta"):  # neither network needs weights of its own
        ours, theirs = build_model(network, 1000), timm.create_model(network)
    state = random_state(ours)
    ours.load_state_dict(state, assign=True)
    theirs.load_state_dict(state, assign=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = ours.eval()(images)
        torch.testing.assert_close(logits, theirs.eval()(images), rtol=0, atol=0)
    assert logits.isfinite().all() and logits.std() > 0


# --- entry points -------------------------------------------------------------------------------

CLEAN = """
import importlib.machinery, sys
absent = set(sys.argv[2].split(","))
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
import torch, models
assert models.MINE, "the caller's own package"
torch.hub.set_dir(sys.argv[1])
repository = "someone/something:main"
names = torch.hub.list(repository, trust_repo=True, verbose=False)
print(*names)
with torch.device("meta"):  # shapes without memory
    for name in names:
        assert "num_classes" in torch.hub.help(repository, name, trust_repo=True), name
        model = torch.hub.load(sys.argv[3], name, source="local", pretrained=False, num_classes=7)
        assert model.fc.out_features == 7, name
torch.hub.load(sys.argv[3], "resnet8", source="local")(torch.zeros(1, 3, 8, 8))
import models
assert models.MINE and "checkpoint" not in sys.modules
"""


@pytest.mark.slow
def test_every_entry_works_with_only_torch_and_beside_a_package_of_the_same_name(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MINE = True\n")
    repository = tmp_path / "hub" / "someone_something_main"  # as torch.hub downloads it
    repository.mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", repository)
    shutil.copytree(ROOT / "models", repository / "models")
    absent = "cv2,sklearn,scipy,tqdm,tensorboard,matplotlib,timm,pandas,hypothesis,pytest"
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(tmp_path / "hub"), absent, str(ROOT)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    own = {name.replace("-", "_") for name in MODELS}
    assert set(done.stdout.splitlines()[0].split()) == own | set(table.ZOO)


@pytest.mark.parametrize("name", table.ZOO)
def test_help_tells_accuracy_input_and_licence(name):
    text, one = getattr(hubconf, name).__doc__, table.ZOO[name]
    for fact in (f"{one.top1} %", f"{one.timm_top1:.2f} %", one.timm_name, "CC-BY-NC 4.0"):
        assert fact in text
    assert "0.485" in text and "0.229" in text and "scale 0 to 1" in text
    assert f"{table.SIZES[one.network][0]:,} parameters" in text


def test_a_second_load_gives_the_same_classes():
    first, second = (
        torch.hub.load(str(ROOT), "resnet8", source="local", num_classes=3) for _ in range(2)
    )
    assert type(first) is type(second)


def test_own_networks_have_no_published_weights():
    with pytest.raises(ValueError, match=r"resnet20 has no published weights.*weights=PATH"):
        hubconf.resnet20(pretrained=True)


# --- downloads ----------------------------------------------------------------------------------


class Host:
    """An HTTP server on loopback: `files` maps a name to bytes, or to a function that answers."""

    def __init__(self):
        self.files, self.asked = {}, []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                host.asked.append(name)
                content = host.files.get(name)
                if callable(content):
                    content(self)
                elif content is None:
                    self.send_error(404)
                else:
                    send(self, content, len(content))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()


def send(handler, content, length):
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A server in the place of the weights' host, and an empty torch.hub folder."""
    host = Host()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for module in BOTH:
        monkeypatch.setattr(module, "URL", host.url)
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch-hub"))
    host.folder = tmp_path / "torch-hub" / "checkpoints"
    yield host
    torch.hub.set_dir(before)
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def publish(host, monkeypatch):
    """publish(name, state, ...) -> the file's name: a state_dict takes the place of a zoo file."""

    def publish(name, state, prefix=None, served=None):
        content = io.BytesIO()  # in the format of 2019, as the published files are
        torch.save(state, content, _use_new_zipfile_serialization=False)
        content = content.getvalue()
        prefix = prefix or hashlib.sha256(content).hexdigest()[:8]
        file = f"{name}-{prefix}.pth"
        for module in BOTH:
            monkeypatch.setitem(module.ZOO, name, module.ZOO[name]._replace(file=file))
        host.files[file] = content if served is None else served(content)
        return file

    return publish


@pytest.fixture(scope="module")
def resnet18():
    """A state_dict of 1,000 classes, without the counters that files of torch 0.4 lack."""
    torch.manual_seed(5)
    state = build_model("resnet18", 1000).state_dict()
    return {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}


def test_the_right_hash_loads_and_is_downloaded_once(publish, host, resnet18):
    file = publish("resnet18_swsl", resnet18)
    for _ in range(2):
        model = torch.hub.load(str(ROOT), "resnet18_swsl", source="local", progress=False)
        state = model.state_dict()
        assert all(torch.equal(state[name], x) for name, x in resnet18.items())
    assert os.listdir(host.folder) == [file]
    assert host.asked == [file, file]  # whether it answers, then the download


def test_another_class_count_replaces_the_head_only(publish, resnet18):
    publish("resnet18_ssl", resnet18)
    state = hubconf.resnet18_ssl(num_classes=10, progress=False).state_dict()
    assert state["fc.weight"].shape == (10, 512)
    rest = {name: x for name, x in resnet18.items() if not name.startswith("fc.")}
    assert rest and all(torch.equal(state[name], x) for name, x in rest.items())


def test_without_pretrained_nothing_is_asked(host):
    hubconf.resnet18_ssl(pretrained=False)
    assert host.asked == [] and not host.folder.exists()


@pytest.mark.parametrize(
    ("prefix", "served", "message"),
    [
        ("0123abcd", None, "invalid hash.*0123abcd.*try again"),
        (None, lambda content: content[:-1] + b"x", "invalid hash"),
        (None, lambda content: lambda to: send(to, content[:9999], len(content)), "invalid hash"),
        (None, lambda content: content[:9999], "invalid hash"),
        (None, lambda content: lambda request: request.send_error(403), "403.*put the file into"),
    ],
    ids=["wrong hash", "altered", "cut off", "short", "forbidden"],
)
def test_a_bad_download_is_refused_and_nothing_is_left(
    publish, host, resnet18, prefix, served, message
):
    publish("resnet18_swsl", resnet18, prefix, served)
    with pytest.raises(ConnectionError, match=message):
        hubconf.resnet18_swsl(progress=False)
    assert not host.folder.exists() or os.listdir(host.folder) == []


def test_an_earlier_download_that_is_damaged_is_refused(publish, host, resnet18):
    file = publish("resnet18_swsl", resnet18)
    host.folder.mkdir(parents=True)
    (host.folder / file).write_bytes(host.files[file][:-1])
    with pytest.raises(ValueError, match=f"{file} is damaged.*delete it"):
        hubconf.resnet18_swsl()
    assert host.asked == []


@pytest.mark.parametrize("stalls", ["at once", "in the middle"])
def test_a_host_that_falls_silent_is_given_up(publish, host, resnet18, monkeypatch, stalls):
    assert download.ANSWER_SECONDS + 2 * download.STALL_SECONDS < 30
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    over = threading.Event()

    def silent(content):
        def answer(request):
            if stalls == "in the middle":
                send(request, content[:5000], len(content))
            over.wait(10)

        return answer

    publish("resnet18_swsl", resnet18, served=silent)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"cannot download.*put the file into"):
        hubconf.resnet18_swsl(progress=False)
    over.set()
    assert time.monotonic() - began < 5
    assert not host.folder.exists() or os.listdir(host.folder) == []


class Evil:
    def __reduce__(self):
        return (open, (os.environ["EVIL"], "w"))


def test_no_code_from_a_file_is_run(publish, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    publish("resnet18_swsl", {"fc.weight": Evil()})
    with pytest.raises(ValueError, match=r"resnet18_swsl.* tensors and plain types"):
        hubconf.resnet18_swsl(progress=False)
    assert not (tmp_path / "evil").exists()


# --- pretrained teachers ------------------------------------------------------------------------


def test_a_published_model_becomes_the_teacher_of_the_four_steps(
    publish, resnet18, folder_flags, step, tmp_path, quick
):
    publish("resnet18_swsl", resnet18)
    run = tmp_path / "run"
    still = ("--weights", "swsl_resnet18", "--input-size", "32", "--learning-rate", "1e-30")
    small = ("--batch-size", "4", "--epochs", "1", "--passes", "1", "--model", "resnet8")
    assert step("teacher", run, *folder_flags, *still, "--epochs", "1") == 0
    teacher = torch.load(run / "teacher" / "model.pt", weights_only=True)
    layers = [name for name, x in resnet18.items() if x.ndim == 4]
    assert len(layers) == 20
    assert all(torch.equal(teacher["state_dict"][name], resnet18[name]) for name in layers)
    assert teacher["arch"] == {"name": "resnet18", "num_classes": 4}
    assert teacher["normalisation"] == {"mean": list(table.MEAN), "std": list(table.STD)}
    assert step("samples", run, "--unlabeled", "heldout", "--k", "5", "--p", "2") == 0
    assert step("student", run, *small) == 0
    assert step("finetuned", run, *small[:-2]) == 0
    assert torch.load(run / "finetuned" / "model.pt", weights_only=True)["input_size"] == 32


@pytest.mark.parametrize("wrapped", ["state_dict", "model", "module.", "_orig_mod.", "stage"])
def test_step_1_starts_from_the_checkpoints_of_other_programs(
    wrapped, folder_run, folder_flags, step, tmp_path, quick
):
    weights = torch.load(folder_run / "teacher" / "model.pt", weights_only=True)["state_dict"]
    if wrapped.endswith("."):
        content = {wrapped + name: x for name, x in weights.items()}
    else:
        content = {wrapped: weights, "epoch": 3}
    path = tmp_path / "other.pth"
    torch.save(content, path)
    path = folder_run / "teacher" if wrapped == "stage" else path
    flags = ("--weights", path, "--learning-rate", "1e-30", "--epochs", "1")
    assert step("teacher", tmp_path / "run", *folder_flags, *flags) == 0
    mine = torch.load(tmp_path / "run" / "teacher" / "model.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(mine[name], x) for name, x in weights.items() if x.ndim == 4)


def test_a_file_cut_off_anywhere_is_named(tmp_path, resnet18, refused, folder_flags):
    whole = io.BytesIO()
    torch.save(resnet18, whole, _use_new_zipfile_serialization=False)
    path = tmp_path / "weights.pth"
    for length in (0, 1, 40, 300, 2_000, 9_000, 1_000_000, len(whole.getvalue()) - 1):
        path.write_bytes(whole.getvalue()[:length])
        error = refused("teacher", tmp_path / "run", *folder_flags, "--weights", path)
        assert f"{path} is damaged" in error


# --- checkpoints of other programs --------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A small network's weights."""
    torch.manual_seed(6)
    return build_model("resnet8", 3).state_dict()


def starts_a_network(content, path, **how):
    """Save a checkpoint, read it, start a network from it; -> the network's weights."""
    torch.save(content, path, **how)
    model = build_model("resnet8", 3)
    assert not start_from(model, weights.load(path), path)
    return model.state_dict()


BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=Path("runs")),
    "best": np.float32(76.5),
    "count": np.int64(3),
    "history": np.arange(6.0).reshape(2, 3),
    "random": np.random.RandomState(0).get_state(),
    "kind": np.dtype("float64"),
    "began": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "day": datetime.date(2024, 1, 2),
    "took": datetime.timedelta(hours=1),
    "path": PureWindowsPath(r"C:\runs"),
    "losses": defaultdict(list, {"train": [0.1]}),
    "recent": deque([1, 2], maxlen=5),
    "torch": torch.__version__,  # a class of its own
    "run": uuid.UUID(int=5),
    "price": Decimal("0.1"),
    "settings": types.SimpleNamespace(seed=0),
    "classes": {"ant", "bee"},
    "span": range(3),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("old", [False, True])
def test_harmless_objects_beside_the_weights_are_passed_over(small, tmp_path, beside, old):
    content = {"state_dict": small, beside: BESIDE[beside]}
    how = {"_use_new_zipfile_serialization": not old}
    loaded = starts_a_network(content, tmp_path / "other.pth", **how)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in small.items())


def test_no_numpy_object_is_made_of_what_a_file_says(tmp_path):
    """NumPy would take a pointer from a file whose type says object and whose flags say number."""
    torch.save({"array": np.arange(3), "number": np.float64(1)}, tmp_path / "numpy.pt")
    kinds = {type(value).__module__ for value in weights.load(tmp_path / "numpy.pt").values()}
    assert kinds == {"models.weights"}


@pytest.mark.parametrize(
    "prefixes",
    [
        ("module.", "module."),
        ("_orig_mod.", "module."),
        ("module.", "_orig_mod."),
        ("model.",),  # Lightning
        ("model.", "_orig_mod.", "module."),
        ("net.",),
        ("ema_model.", "backbone.module."),
        ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
    ],
)
def test_prefixes_of_wrappers_are_stripped_until_nothing_changes(small, tmp_path, prefixes):
    content = {"".join(prefixes) + name: tensor for name, tensor in small.items()}
    content["".join(prefixes[:1]) + "n_averaged"] = torch.tensor(7)  # of torch's AveragedModel
    loaded = starts_a_network({"state_dict": content}, tmp_path / "other.pth")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in small.items())


def test_a_wrapper_inside_a_network_is_stripped_too(small, tmp_path):
    content = {name.replace("blocks.0.", "blocks.0._orig_mod."): x for name, x in small.items()}
    assert content.keys() != small.keys()
    starts_a_network(content, tmp_path / "other.pth")


def test_a_prefix_that_is_the_networks_own_stays():
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = build_model("resnet8", 3)

    one, other = Wrapped(), Wrapped()
    start_from(one, other.state_dict(), "itself")
    assert torch.equal(one.model.conv1.weight, other.model.conv1.weight)


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "keys",
    ["model_state_dict", "net", "ema", "model", "network", "ema.module", "a.b.c.d", "student"],
)
def test_the_one_dict_of_tensors_is_found(small, tmp_path, keys):
    content = small
    for key in reversed(keys.split(".")):
        content = {
            key: content,
            "optimizer": OPTIMIZER,
            "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)},
        }
    loaded = starts_a_network(content, tmp_path / "other.pth")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in small.items())


def test_the_network_itself_goes_before_its_average(small, tmp_path):
    average = {name: torch.zeros_like(tensor) for name, tensor in small.items()}
    loaded = starts_a_network({"model_ema": average, "model": small}, tmp_path / "other.pth")
    assert torch.equal(loaded["conv1.weight"], small["conv1.weight"])
    with pytest.raises(ValueError, match="several networks, student, teacher; save one"):
        starts_a_network({"student": small, "teacher": average}, tmp_path / "two.pth")


class Recipe:
    """A class of another program."""


NOT_WEIGHTS = {
    "an object": ({"state_dict": {}, "recipe": Recipe()}, "test_hub.Recipe, which could run code"),
    "a module": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear, which could run code"),
    "code": ({"fc.weight": Evil()}, "io.open, which could run code"),
    "None": (None, "but a NoneType"),
    "False": (False, "but a bool"),
    "a tensor": (torch.zeros(2, 2), "but a Tensor"),
    "a list": ([torch.zeros(2, 2)], "but a list"),
    "nothing": ({}, "but nothing"),
    "an empty dict": ({"state_dict": None, "epoch": 3}, "but state_dict, epoch"),
    "numbers": ({"losses": {"train": [1.0]}}, "but losses"),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_holds_no_weights_says_what_it_holds(
    kind, old, tmp_path, refused, folder_flags, monkeypatch
):
    """Never that a whole file is damaged, and never a start from random weights."""
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    content, said = NOT_WEIGHTS[kind]
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    error = refused("teacher", tmp_path / "run", *folder_flags, "--weights", tmp_path / "x.pth")
    assert said in error and "damaged" not in error and not (tmp_path / "evil").exists()


def test_a_whole_file_of_another_kind_is_not_called_damaged(tmp_path):
    scripted = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(scripted, tmp_path / "exported.pt2")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "text.pth", "w") as archive:
        archive.writestr("notes.txt", "no weights")
    for name in ("exported.pt2", "arrays.npz", "text.pth"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint"):
            weights.load(tmp_path / name)


def test_safetensors_are_known_by_their_content(small, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(small, tmp_path / "pytorch_model.bin")
    model = build_model("resnet8", 3)
    start_from(model, weights.load(tmp_path / "pytorch_model.bin"), "bin")
    assert torch.equal(model.state_dict()["conv1.weight"], small["conv1.weight"])


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    content = {"epoch": 1}
    content["self"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        start_from(build_model("resnet8", 3), weights.load(tmp_path / "loop.pth"), "loop.pth")
