"""Where a step computes: the device, its memory, the number of threads."""

import ctypes
import os

import torch

import distributed


def set_up_device(name, deterministic=False):
    """The torch.device of --device, ready for use.

    name: auto, cpu, cuda or mps;  deterministic: refuse kernels whose sums vary from run to run
    Under torchrun each process of a machine gets a GPU of its own.
    Raises ValueError for a device that is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(one for one in there if there[one])
    if not there[name]:
        raise ValueError(f"--device {name} is not available here; use --device cpu or auto")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    _keep_freed_memory()
    if name == "cuda" and distributed.size() > 1:
        if distributed.local_rank() >= torch.cuda.device_count():
            raise ValueError(
                f"process {distributed.local_rank()} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(distributed.local_rank())
        return torch.device(name, distributed.local_rank())
    return torch.device(name)


def _keep_freed_memory():
    """Let glibc keep what a step frees, for the next one; elsewhere nothing happens.

    By default it gives large blocks back to the system, which clears their pages anew at the next
    step: resnet20 spent 3 to 5 % of its training and a third of its prediction on that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: 32 MB, the most that every version takes
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing goes back
