"""What a step computes with: device, precision, threads, memory."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import distributed
from models.others import check_input_size

# Another thread pays off above this many multiply-adds per step.
MULTIPLY_ADDS_A_THREAD = 1e9
# Multiply-adds of a training that a CPU core does in a second, as ResNet-50 does them at 64 px.
RATE = {"float32": 2.2e10, "bfloat16": 1.1e11, "float16": 2.2e10}


class Compute(NamedTuple):
    """What a stage computes with."""

    device: torch.device
    precision: torch.dtype  # of the convolutions; weights, losses and logits are float32
    threads: int

    @property
    def precision_name(self):
        """float32, bfloat16, float16: as --precision and config.json have it."""
        return str(self.precision).removeprefix("torch.")


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
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        raise ValueError(f"--device {name} is not available here; use --device cpu or auto")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if name == "cpu":
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
    step: resnet20 spent 3 to 5 % of its training and a third of its prediction on that.  Blocks
    above 32 MB come and go one by one whatever the threshold: nearly half of step 2's time with
    resnet8 at 64 px.  The process keeps its peak until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: the main thread's blocks all lie in the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing of the heap goes back


def settle_compute(device, flags, saved, network, input_size, batch_size):
    """The Compute of a stage; sets the number of threads.

    flags: dict of precision and threads, "auto" and None where they are not given
    saved: config.json of the stage that is resumed, or None: it goes on as it began, since another
    precision or another number of threads gives other bits
    network: the module that will run, in batches of `batch_size` images of `input_size` pixels
    Raises ValueError for bfloat16 on a GPU without it, and for a network that does not take images
    of that size.
    """
    check_input_size(network, input_size)
    precision, threads = flags["precision"], flags["threads"]
    if saved:
        precision = saved["precision"] if precision == "auto" else precision
        threads = threads or saved["threads"]
    if precision == "auto":
        precision = faster_precision(device)
    if precision == "bfloat16" and device.type == "cuda" and not _gpu_has_bfloat16():
        raise ValueError("--precision bfloat16: this GPU only emulates it; use float16 or auto")
    threads = threads or _useful_threads(network, input_size, batch_size)
    torch.set_num_threads(threads)
    return Compute(device, getattr(torch, precision), threads)


def settle_compile(device, flag, saved):
    """Whether torch.compile makes the network that is trained.

    flag: auto, on or off;  saved: as in `settle_compute`
    Kernels that it makes are other ones than torch's, with other rounding, and nobody says that
    their sums never vary: --deterministic does without.
    Raises ValueError for on with --deterministic.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if flag == "on" and deterministic:
        raise ValueError("--compile on contradicts --deterministic; leave one of them out")
    if flag == "auto" and saved:
        return saved.get("compile", False)
    if flag == "auto":
        return device.type == "cuda" and not deterministic and _compiler_works(device)
    return flag == "on"


def _compiler_works(device):
    """A trial: there may be no Triton, no C compiler, or a GPU too old for both."""
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"training without torch.compile: {reason[0]}", file=sys.stderr)
        return False
    return True


def faster_precision(device):
    """The fastest of float32, bfloat16 and float16 (docs/performance.md has the figures).

    A GPU: bfloat16 where it computes with it itself, else float16 (T4, V100, RTX 20: none of them
    was measured).  A CPU: bfloat16 with AMX, and with avx512_bf16 if it is AMD's; Intel's
    avx512_bf16 alone is slower than its float32.  No other CPU was measured.
    ONEDNN_MAX_CPU_ISA makes a CPU behave like an older one, so it decides too.
    """
    if device.type == "cuda":
        return "bfloat16" if _gpu_has_bfloat16() else "float16"
    if device.type != "cpu":
        return "float32"
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    whole = isa in ("DEFAULT", "ALL")
    amx = _cpu_has("_is_amx_tile_supported") and (whole or "AMX" in isa)
    avx = _cpu_has("_is_avx512_bf16_supported") and (whole or "BF16" in isa or "AMX" in isa)
    return "bfloat16" if amx or (avx and _cpu_maker() == "AuthenticAMD") else "float32"


def _gpu_has_bfloat16():
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has(name):
    return getattr(torch.cpu, name, lambda: False)()  # no public name in torch 2.11 to 2.15


def _cpu_maker():
    """The CPUID vendor, such as AuthenticAMD or GenuineIntel; "" where it is not known."""
    if os.name == "nt":
        return os.environ.get("PROCESSOR_IDENTIFIER", "").rpartition(", ")[2]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "")


def _useful_threads(network, input_size, batch_size):
    """As many of the threads that torch would take as have enough to do.

    In a small network threads mostly wait for each other, and beside other work a thread that has
    lost its core holds up all of them at every layer.
    """
    step = multiply_adds(network, input_size) * batch_size
    return max(1, min(torch.get_num_threads(), round(step / MULTIPLY_ADDS_A_THREAD)))


def multiply_adds(network, input_size):
    """Multiply-adds of a network for one image of `input_size` pixels a side, counted by torch."""
    image = torch.zeros(1, 3, input_size, input_size, device=next(network.parameters()).device)
    was_training = network.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image)
    network.train(was_training)
    return counter.get_total_flops() // 2


def device_name(device):
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
    names = [torch.backends.cpu.get_cpu_capability()]
    for name in ("avx512_bf16", "amx_tile"):
        if _cpu_has(f"_is_{name}_supported"):
            names.append(name.removesuffix("_tile").removeprefix("avx512_"))
    return " ".join(names)
