"""Let a CPU-only PyTorch hold fake tensors on `cuda`, to run the CUDA branches of the code without a GPU.

Call `load` before the first import of `torch`. Inside `fake_mode()` tensors then have a device, a dtype and a shape but
no data. Operations that mix devices, or that read a value of a CUDA tensor, raise. Nothing is computed: this checks
devices, dtypes, shapes and host synchronisation, not numbers.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def is_supported() -> bool:
    """Return whether the library can be compiled and loaded here. It takes the place of CUDA's in a CPU build."""
    from torch.version import cuda  # not at the top: `load` comes before the first import of torch

    return sys.platform.startswith("linux") and shutil.which("g++") is not None and cuda is None


def environment() -> dict[str, str]:
    """Return the environment of the tests without the variable that keeps Accelerate on the CPU."""
    return {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}


def load() -> None:
    """Compile the library if that has not been done, and load it with PyTorch's own libraries.

    Raises:
        RuntimeError: PyTorch was imported before and would not find the library.
    """
    if "torch" in sys.modules:
        raise RuntimeError("fake_cuda: torch is imported already; call load() first")
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_compile(torch_folder)), mode=ctypes.RTLD_GLOBAL)


def _compile(torch_folder: Path) -> Path:
    version = (torch_folder / "version.py").read_bytes()
    digest = hashlib.sha256(version + SOURCE.read_bytes()).hexdigest()[:16]
    library = SOURCE.parent / "build" / f"{digest}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
        command = ["g++", "-shared", "-fPIC", "-O0", "-std=c++20", *includes, str(SOURCE), "-o", str(partial)]
        subprocess.run(command, check=True)
        os.replace(partial, library)
    return library
