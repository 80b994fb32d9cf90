"""A trained network in other people's formats: safetensors, ONNX, the folder of a model hub.

`content` is what a model.pt holds, its tensors on the CPU; see stages/checkpoint.py.
"""

import json

import torch

from .needed import needed
from .weights import CONTENT, rebuild


def write_safetensors(content, path):
    """The weights under their own names; all the rest as JSON in the file's metadata, from which
    `weights.load` makes the content again.  timm and torchvision load the weights as they are.
    """
    facts = {name: value for name, value in content.items() if name != "state_dict"}
    metadata = {"format": "pt", CONTENT: json.dumps(facts)}
    needed("safetensors.torch", "this format").save_file(content["state_dict"], path, metadata)


def write_onnx(content, path):
    """The network as ONNX, from normalised images (B,3,S,S) to float32 logits (B,C), any B.

    Raises ValueError where onnxruntime's logits of ten random images are not torch's.
    """
    for module in ("onnx", "onnxscript"):
        needed(module, "this format")
    runtime = needed("onnxruntime", "this format")
    model, side = rebuild(content, path).eval(), content["input_size"]
    images = torch.randn(10, 3, side, side, generator=torch.Generator().manual_seed(0))
    options = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    shapes = ({0: torch.export.Dim("batch", min=1)},)  # any number of images
    torch.onnx.export(model, (images[:2],), path, dynamic_shapes=shapes, verbose=False, **options)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = model(images)
    if not torch.allclose(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-3):
        raise ValueError("onnxruntime gives other logits than torch; export another format")


def hub_config(content):
    """config.json as timm's hub folders have it, which transformers reads too: a dict."""
    side, labels = content["input_size"], {"label_names": content["classes"]}
    facts = {"input_size": [3, side, side], **content["normalisation"], **labels}
    name, number = content["arch"]["name"].removeprefix("timm/"), content["arch"]["num_classes"]
    return {"architecture": name, "num_classes": number, **labels, "pretrained_cfg": facts}
