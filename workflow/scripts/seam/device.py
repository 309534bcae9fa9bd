"""Where the work runs and how precisely, and the seeds it runs with."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from seam.errors import UserError
from seam.log import log

NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU, where its driver is
TAKEN = "SEAM_GPU"  # in the environment: the GPU that this process, or the one that started it, has locked
POLL = 2  # seconds between two looks for a free GPU
# Of the whole process, as torch's own settings are. What `forward` computes in; the lock on the GPU, kept to its end.
_precision, _lock = "float32", None


def select_device(wanted="auto"):
    """The torch device of this process: `auto`, `cpu`, `cuda` or `mps`, and after a `/` the precision of its steps.

    A CUDA GPU is this process's alone, and that of the processes it starts: of several the first that no other job
    has; where none is free it waits. Its precision is `bfloat16` (unless said otherwise), `tf32` or `float32`;
    elsewhere, and where a GPU has no bfloat16, all is in float32. Raises UserError where the device is not there.

    >>> select("cpu/bfloat16"), describe(select("cpu/bfloat16"))
    (device(type='cpu'), {'device': 'cpu', 'precision': 'float32'})
    """
    global _precision
    import torch

    name, _, precision = wanted.partition("/")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"device: {name} is asked for in the config, but torch finds none here: choose auto or cpu.")
    if name != "cuda":
        _precision = "float32"
        return torch.device(name)
    index = _free_gpu()
    torch.cuda.set_device(index)
    _precision = precision or "bfloat16"
    if _precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("this GPU does not compute in bfloat16: float32 is taken")
        _precision = "float32"
    _products("tf32" if _precision == "tf32" else "ieee")
    log.info("runs on %s, GPU %d, in %s", torch.cuda.get_device_name(index), index, _precision)
    return torch.device(name, index)


def is_cuda(wanted):
    """Whether `select_device` gives a CUDA GPU for this device and precision, as the config names them."""
    return select_device(wanted).type == "cuda"


def describe_device(device):
    """What a checkpoint and a result keep of where they come from. Which of several GPUs it was says nothing."""
    return {"device": device.type, "precision": _precision}


def forward(model, images):
    """The model's outputs in float32, in a step of training or search: here alone the precision matters.

    In bfloat16 are the convolutions and matrix products of this pass and of the backward pass from it; weights, their
    gradients and all that is made of the outputs stay in float32. The loss needs no scaling, since bfloat16 has the
    exponents of float32.
    """
    if _precision != "bfloat16":
        return model(images)
    import torch

    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images).float()


@contextlib.contextmanager
def exact():
    """Float32 products as they are: for what is measured, whatever steps are computed in. Also a decorator."""
    before = _products("ieee")
    try:
        yield
    finally:
        _products(*before)


def _products(*precisions):
    """Set how CUDA computes float32 products and convolutions, `ieee` or `tf32`; gives what was set before."""
    import torch

    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [kind.fp32_precision for kind in kinds]
    for kind, precision in zip(kinds, itertools.cycle(precisions), strict=False):
        kind.fp32_precision = precision
    return before


def _free_gpu():
    """The index of a visible GPU, locked until this process ends."""
    global _lock
    import torch
    from filelock import FileLock, Timeout

    # By its own number: an index says another GPU in a process that sees others.
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    if os.environ.get(TAKEN) in names:
        return names.index(os.environ[TAKEN])
    waiting = False
    while True:
        for index, name in enumerate(names):
            path = Path(tempfile.gettempdir(), f"seam-{os.getuid()}-gpu-{name}.lock")
            try:
                lock = FileLock(path)
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except OSError as error:
                raise UserError(f"Cannot lock a GPU with {path} ({error.strerror}): mend its permissions.") from error
            _lock, os.environ[TAKEN] = lock, name
            return index
        if not waiting:
            log.info("waits: other jobs have all %d GPUs", len(names))
            waiting = True
        time.sleep(POLL)


def gpus():
    """How many NVIDIA GPUs the jobs on this machine may use, 0 where none is found. Does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # what follows an empty or a negative one counts for nothing, as in CUDA
        named = (name.strip() for name in visible.split(","))
        return len(list(itertools.takewhile(lambda name: name and not name.startswith("-"), named)))
    with contextlib.suppress(OSError):
        return len(list(NVIDIA.iterdir()))
    if shutil.which("nvidia-smi"):  # Windows' Linux has no such folder
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return 0
