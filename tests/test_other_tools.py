"""Other people's tools read what the steps write, and the steps read what those tools write."""

import json

import cv2
import numpy as np
import pytest
import torch
import torchvision

import export
from stages import checkpoint

duckdb = pytest.importorskip("duckdb")
pandas = pytest.importorskip("pandas")
webdataset = pytest.importorskip("webdataset")

# Equal scores go to the image that is earlier in the pool, which is the order of scores.npz.
RANKING = """
    select image, label, score,
        row_number() over (partition by label order by score desc, position) as rank
    from candidates qualify rank <= {k} order by label, rank
"""


def test_duckdb_makes_the_selection_again_from_the_scores(folder_run):
    samples = folder_run / "samples"
    with np.load(samples / "scores.npz", allow_pickle=False) as scores:
        images, p = scores["image"], scores["score"].shape[1]
        candidates = pandas.DataFrame(
            {
                "image": images.repeat(p),
                "position": np.arange(len(images)).repeat(p),
                "label": scores["label"].ravel(),
                "score": scores["score"].ravel(),
            }
        )
    with duckdb.connect() as database:
        database.register("candidates", candidates)
        ours = database.read_csv(str(samples / "selection.csv"), dtype={"score": "FLOAT"})
        ranked = database.sql(RANKING.format(k=5)).fetchall()
        assert ours.columns == ["image", "label", "score", "rank"]
        assert ours.fetchall() == ranked
    assert len(ranked) == json.loads((samples / "result.json").read_text())["selected"]


def test_pandas_joins_selection_and_class_names(folder_run):
    selected = pandas.read_csv(folder_run / "samples" / "selection.csv")
    result = json.loads((folder_run / "samples" / "result.json").read_text())
    selected["class"] = selected.label.map(dict(enumerate(result["class_names"])))
    names = torch.load(folder_run / "teacher" / "model.pt", weights_only=True)["classes"]
    counts = dict(zip(names, result["per_class_counts"], strict=True))
    assert selected["class"].value_counts().to_dict() == {c: n for c, n in counts.items() if n}


def test_pandas_reads_metrics_and_compares_runs(folder_run, digits_run):
    stages = [run / s for run in (folder_run, digits_run) for s in ("teacher", "student")]
    epochs = [pandas.read_json(stage / "metrics.jsonl", lines=True) for stage in stages]
    table = pandas.concat(epochs, keys=map(str, stages))
    assert (
        table.dtypes.map(pandas.api.types.is_numeric_dtype).all() and not table.isna().any().any()
    )
    results = pandas.DataFrame(
        [json.loads((stage / "result.json").read_text()) for stage in stages], map(str, stages)
    )
    assert table.groupby(level=0).val_top1.last().to_dict() == results.val_top1.to_dict()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_shards_of_webdataset_are_a_pool(run_before, tmp_path, step, suffix):
    """Two shards of its writer, in its own brace notation: image and label of each sample."""
    random = np.random.default_rng(50)  # others than those of the labelled set
    with webdataset.ShardWriter(
        str(tmp_path / f"pool-%06d.{suffix}"), maxcount=4, verbose=0
    ) as shards:
        for number in range(8):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            png = cv2.imencode(".png", pixels)[1].tobytes()
            shards.write({"__key__": f"{number:04d}", "png": png, "cls": number % 4})
    run, spec = run_before("samples"), str(tmp_path / f"pool-{{000000..000001}}.{suffix}")
    assert step("samples", run, "--unlabeled", spec, "--k 5 --p 2") == 0
    with np.load(run / "samples" / "scores.npz") as scores:
        names = scores["image"].tolist()
    expected = [sample["__key__"] for sample in webdataset.WebDataset(spec, shardshuffle=False)]
    assert [name.rsplit("/")[-1] for name in names] == [f"{key}.png" for key in expected]


def test_torchvisions_image_folder_reads_an_exported_selection(folder_run, step, tmp_path):
    assert step("samples", folder_run, "--resume", "--export", tmp_path / "export") == 0
    exported = torchvision.datasets.ImageFolder(tmp_path / "export")
    selected = pandas.read_csv(folder_run / "samples" / "selection.csv")
    assert len(exported) == len(selected)
    classes = dict(enumerate(["ant", "bee", "crab", "dove"]))
    assert exported.classes == sorted(set(selected.label.map(classes)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder_flags, step):
    """trained(model) -> OUT, the hub folder of a network of another library, and its checkpoint."""

    def train(model):
        run = tmp_path_factory.mktemp("run")
        flags = f"--model {model} --input-size 32 --epochs 1"
        assert step("teacher", run, *folder_flags, flags) == 0
        export.main([str(run / "teacher"), str(run / "hub"), "--hub-folder"])
        return run / "hub", checkpoint.load_model(run / "teacher" / "model.pt").model.eval()

    return train


@torch.no_grad()
def assert_same_logits(ours, theirs):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs.eval()(images), ours(images), rtol=1e-4, atol=1e-5)


def test_timm_loads_a_hub_folder_of_its_own_network(trained):
    timm = pytest.importorskip("timm")
    hub, ours = trained("timm/test_resnet")
    theirs = timm.create_model(f"local-dir:{hub}", pretrained=True)
    assert_same_logits(ours, theirs)
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "crab", "dove"]
    mean = json.loads((hub / "config.json").read_text())["pretrained_cfg"]["mean"]
    assert timm.data.resolve_model_data_config(theirs)["mean"] == mean


def test_torchvision_loads_the_weights_of_its_own_network(trained):
    load_file = pytest.importorskip("safetensors.torch").load_file
    hub, ours = trained("shufflenet_v2_x0_5")
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    theirs.load_state_dict(load_file(hub / "model.safetensors"))
    assert_same_logits(ours, theirs)
