"""config.json: every setting in force, the versions, the inputs."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import distributed


def config_of(stage, settings, labelled, normalisation, compute, parent=None, **own):
    """The content of config.json.

    stage: its name;  settings: of `inherit`;  labelled: data.LabelledSet
    normalisation: mean and std, three numbers each;  compute: device.Compute
    parent: of FinishedStage.as_parent;  own: what only this stage has
    """
    mean, std = normalisation
    return {
        "stage": stage,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **settings,
        **own,
        "data_dir": str(settings["data_dir"]),
        "cache_dir": settings.get("cache_dir") and str(settings["cache_dir"]),
        "normalisation": {"mean": mean, "std": std},
        "device": compute.device.type,
        "device_name": _device_name(compute.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": compute.precision_name,
        "threads": compute.threads,
        "processes": distributed.size(),
        "versions": versions(),
        "inputs": {"labelled": labelled.inputs},
        "parent": parent,
    }


def versions():
    """The project's commit (None outside git) and the libraries' versions."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = None
    if (root / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    found = {"project": commit, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "opencv-python", "opencv-python-headless"):
        try:
            found[package.removesuffix("-headless")] = version(package)
        except PackageNotFoundError:
            found.setdefault(package.removesuffix("-headless"), None)
    return found


def _device_name(device):
    """Which GPU, or which CPU and the instruction set that decides how its sums are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    lines = path.read_text().splitlines() if path.exists() else ()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    most = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{name}, {instruction_set()}" + (f" (oneDNN: {most})" if most else "")


def instruction_set():
    """The CPU's widest instructions that torch uses, such as AVX2 or "AVX512 AMX"."""
    found = [torch.backends.cpu.get_cpu_capability()]
    for name in ("avx512_bf16", "amx_tile"):
        if getattr(torch.cpu, f"_is_{name}_supported", lambda: False)():
            found.append(name.removesuffix("_tile").removeprefix("avx512_"))
    return " ".join(found)
