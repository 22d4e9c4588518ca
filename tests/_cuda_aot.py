"""csrc/cuda compiled without a GPU, as setup.py and NVRTC do, for _sass.py to read."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import _sass
import pytest
import torch

from snnfast.backends.cuda import launch, nvrtc

ROOT = Path(__file__).resolve().parents[1]
HOMES = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
NVCC = shutil.which("nvcc") or next(
    (str(Path(h, "bin/nvcc")) for h in HOMES if h and Path(h, "bin/nvcc").exists()), None
)
needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="nvcc is not in CUDA_HOME, on PATH or in /usr/local/cuda"
)
ARCHS = ["sm_80", "sm_90"]
FLAGS = ["-std=c++17", "-O3", "-fmad=false"]
INCLUDES = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]


def of_the_module(source: str, *names: str) -> list[dict[str, _sass.Kernel]]:
    """{name: Kernel} of csrc/cuda/<source>.cu for each of ARCHS; ``names``: -D options."""
    read = [_sass.read(cubin) for cubin in _cubins(source, names)]
    return [{n: c for n, c in kernels.items() if c.registers} for kernels in read]


@cache
def _cubins(source: str, names: tuple[str, ...]) -> list[bytes]:
    archs = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in ARCHS]
    command = [NVCC, *FLAGS, *INCLUDES, *archs, *names, "-fatbin"]
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, str(path), "-o", f"{folder}/out.fatbin"], check=True)
        Path(folder, "cubins").mkdir()
        cubins = _sass.cubins(Path(folder, "out.fatbin"), Path(folder, "cubins"))
        assert len(cubins) == len(ARCHS)
        return [cubin.read_bytes() for cubin in cubins]


def one_kernel(header: str, names: tuple[str, ...], arch: str, text: str = "") -> _sass.Kernel:
    """snnfast_<header>, all of its configuration constants, as NVRTC would get it, by nvcc."""
    return _sass.read(_cubin(header, names, arch, text))[f"snnfast_{header}"]


@cache
def _cubin(header: str, names: tuple[str, ...], arch: str, text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one.cu").write_text(launch.source(f"{header}.cuh", text)[0])
        command = [NVCC, *FLAGS, *INCLUDES, *names, f"-arch={arch}", "-cubin", "one.cu"]
        subprocess.run([*command, "-o", "one.cubin"], check=True, cwd=folder)
        return Path(folder, "one.cubin").read_bytes()


_of_nvrtc = cache(nvrtc.compile_cubin)
needs_nvrtc = pytest.mark.skipif(
    nvrtc.library() is None, reason="no libnvrtc: pip install nvidia-cuda-nvrtc"
)


def nvrtc_kernel(
    header: str, names: tuple[str, ...], arch: str = "sm_90", text: str = ""
) -> _sass.Kernel:
    """The same by NVRTC, which knows no standard header: what is compiled at first use where there
    was no nvcc."""
    text, options = launch.source(f"{header}.cuh", text)
    cubin = _of_nvrtc(text, (*options, *names, f"--gpu-architecture={arch}"))
    return _sass.read(cubin)[f"snnfast_{header}"]


each_compiler = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(one_kernel, marks=needs_nvcc, id="nvcc"),
        pytest.param(nvrtc_kernel, marks=needs_nvrtc, id="nvrtc"),
    ],
)
"""For tests of what either makes of a configuration: one shipped with a wheel, one at first use."""

each_pair = pytest.mark.parametrize(
    ("dtype", "steps", "arch"),
    [
        (torch.float32, 4, "sm_80"),
        (torch.float32, 8, "sm_90"),
        (torch.bfloat16, 4, "sm_90"),
        (torch.bfloat16, 8, "sm_80"),
    ],
    ids=str,
)
"""For tests of a scan: every pair of a dtype, a number of steps and an architecture."""
