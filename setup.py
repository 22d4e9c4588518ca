"""Builds snnfast._C (always) and snnfast._cuda (where nvcc works) with ninja, without torch.

Environment: SNNFAST_CUDA=auto|0|1 (1 makes a missing or failing nvcc an error), SNNFAST_CUDA_ARCHS
(default "80;90"; PTX of the newest is added), MAX_JOBS.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi"
# What is built here runs on older machines of the same kind: one object per instruction set.
X86_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl",
}
WITH_AVX512 = ("lif", "norm_lif")  # where it pays
# For compiler and linker: OpenMP of gcc and clang, that of Apple's clang with libomp, none.
OPENMP = (
    ("-fopenmp", "-fopenmp"),
    ("-Xpreprocessor -fopenmp", "-lomp"),
    ("-Wno-unknown-pragmas", ""),
)


# Why there is no CUDA module; beside the modules, and gone where there is one.
NOTE = "_no_cuda.txt"


def say(text: str) -> None:
    print(f"snnfast: {text}", file=sys.stderr, flush=True)


def wanted_cuda() -> str:
    wanted = os.environ.get("SNNFAST_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"setup: SNNFAST_CUDA must be auto, 0 or 1, got {wanted!r}")
    return wanted


def find_nvcc() -> tuple[str | None, str]:
    """nvcc's path, or None and why there is none."""
    if wanted_cuda() == "0":
        return None, "SNNFAST_CUDA=0 at install"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(h) / "bin" / "nvcc" for h in homes if h]
    on_path = shutil.which("nvcc")
    candidates.insert(1, Path(on_path) if on_path else None)
    for nvcc in candidates:
        if nvcc and nvcc.is_file():
            return str(nvcc), ""
    return None, "nvcc was not in CUDA_HOME, on PATH or in /usr/local/cuda at install"


def cuda_root(nvcc: str) -> Path:
    """The toolkit that nvcc belongs to; nvcc itself may be a link or a wrapper somewhere else."""
    dry = subprocess.run(
        [nvcc, "-dryrun", "-x", "cu", "-"], input="", capture_output=True, text=True
    )
    for line in dry.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return Path(nvcc).resolve().parent.parent


def archs() -> list[str]:
    text = os.environ.get("SNNFAST_CUDA_ARCHS", "80;90")
    found = [arch.strip() for arch in text.replace(",", ";").split(";") if arch.strip()]
    if not found:
        raise SystemExit(f"setup: SNNFAST_CUDA_ARCHS must be like 80;90, got {text!r}")
    return found


def arch_flags() -> str:
    *older, newest = archs()
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in older]
    # One front end for both: two options would compile it twice.
    both = f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]"
    return " ".join([*flags, quoted(both)])


class Compiler:
    """The C++ compiler, and what the machine asks for that it compiles for: maybe not this one."""

    def __init__(self):
        self.command = os.environ.get("CXX", "g++")
        try:
            self.target = self.run("-dumpmachine").stdout.strip()
        except OSError as error:
            raise SystemExit(f"setup: no C++ compiler: {error}; install g++ or set CXX") from None
        x86 = re.match(r"(x86_64|amd64)-", self.target)
        self.isa_flags = {"baseline": ""} | (X86_FLAGS if x86 else {})
        darwin = re.search("apple|darwin|macos", self.target)
        # Python's own symbols are in the process that loads a module.
        self.shared = "-shared -undefined dynamic_lookup" if darwin else "-shared"
        self.openmp, self.openmp_link = next(filter(self.has_openmp, OPENMP[:-1]), OPENMP[-1])

    def run(self, flags: str, source: str = "") -> subprocess.CompletedProcess:
        command = [*self.command.split(), *flags.split()]
        return subprocess.run(command, input=source, capture_output=True, text=True)

    def has_openmp(self, flags: tuple[str, str]) -> bool:
        compiled, linked = flags
        source = "#include <omp.h>\nint f() { return omp_get_max_threads(); }"
        probe = f"{compiled} -x c++ - -fPIC {self.shared} {linked} -o {os.devnull}"
        return self.run(probe, source).returncode == 0


def run_ninja(folder: Path) -> None:
    """Shows the output while it comes; RuntimeError with the line of it that names the fault."""
    jobs = os.environ.get("MAX_JOBS")
    command = [sys.executable, "-m", "ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])]
    output = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as ninja:
        for line in ninja.stdout:
            sys.stderr.write(line)
            output.append(line.strip())
    if ninja.returncode:
        faults = [line for line in output if re.search(r"\b(error|fatal|not found)\b", line, re.I)]
        raise RuntimeError(faults[0] if faults else "the compiler failed without a word")


class Ninja:
    """Collects the rules of one module and runs them."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.objects = folder, [], []

    def compile(self, name: str, command: str, source: Path) -> None:
        target = f"{name}.o"
        self.lines += [f"rule {name}", f"  command = {command} -MMD -MF $out.d -c $in -o $out"]
        self.lines += ["  depfile = $out.d", "  deps = gcc"]
        self.lines += [f"build {target}: {name} {str(source).replace(' ', '$ ')}", ""]
        self.objects.append(target)

    def link(self, output: Path, command: str) -> None:
        self.lines += [
            "rule link",
            f"  command = {command}",
            f"build module.so: link {' '.join(self.objects)}",
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        run_ninja(self.folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.folder / "module.so", output)


def quoted(path) -> str:
    return f'"{path}"'


class BuildWithNinja(build_ext):
    def run(self):
        super().run()
        # In the package, for `snnfast info`; an earlier build's CUDA module goes.
        package = Path(self.get_ext_fullpath("snnfast._C")).parent
        (package / NOTE).unlink(missing_ok=True)
        if self.why_not:
            (package / NOTE).write_text(self.why_not + "\n")
            for stale in package.glob("_cuda.*.so"):
                stale.unlink()

    def build_extensions(self):
        cpu, cuda = self.extensions
        self.nvcc, why_not = find_nvcc()
        self.compiler = Compiler()
        plan = f"the CPU module ({', '.join(self.compiler.isa_flags)}), about a minute"
        if self.nvcc:
            plan += (
                f"; the CUDA module for sm_{', sm_'.join(archs())} with {self.nvcc}, some minutes "
                "more (SNNFAST_CUDA=0 leaves it out)"
            )
        # pip shows a build's output with -v only; `snnfast info` tells the outcome later.
        say(f"building {plan}")
        try:
            self.build_extension(cpu)
        except RuntimeError as error:
            raise SystemExit(f"setup: the CPU module could not be built: {error}") from None
        if self.nvcc:
            try:
                self.build_extension(cuda)
            except (OSError, RuntimeError) as error:
                why_not = f"{self.nvcc} failed at install: {error}"
        if why_not:
            if wanted_cuda() == "1":
                raise SystemExit(f"setup: SNNFAST_CUDA=1, but {why_not}")
            self.extensions = [cpu]
        self.why_not = why_not
        say(f"built without the CUDA module: {why_not}" if why_not else "built")

    def build_extension(self, ext):
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        self.includes = f"-I{quoted(ROOT / 'csrc/include')}"
        # Isolated builds have pybind11 in another place each time: for those files alone that need
        # it, so that the others are not compiled again.
        python = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        self.bindings = " ".join(f"-isystem {quoted(path)}" for path in python)
        ninja = Ninja(Path(self.build_temp).resolve() / ext.name)
        (self.build_cuda if ext.name == "snnfast._cuda" else self.build_cpu)(ninja, output)

    def build_cpu(self, ninja, output):
        cxx = self.compiler
        flags = f"{cxx.command} {CXX_FLAGS} {cxx.openmp} {self.includes}"
        # The longest first, so that the last ones end together. Where there is a better instruction
        # set the baseline is for machines of long ago and for float64, and need not be fast.
        slow = "-O1 -DSNN_SLOW" if len(cxx.isa_flags) > 1 else ""
        defines = "".join(f" -DSNN_HAVE_{isa.upper()}" for isa in X86_FLAGS if isa in cxx.isa_flags)
        command = f"{flags} -O1 {self.bindings}{defines}"
        ninja.compile("bindings", command, ROOT / "csrc/cpu/bindings.cpp")
        for kernel in ("lif", "distill", "program", "norm_lif", "compiled", "spikes"):
            for isa, isa_flags in cxx.isa_flags.items():
                if isa == "avx512" and kernel not in WITH_AVX512:
                    continue
                more = f"-DSNN_FLOAT64 {slow}" if isa == "baseline" else isa_flags
                if kernel == "lif" and isa != "baseline":  # as fast, in two thirds of the time
                    more += " -O2"
                command = f"{flags} -DSNN_ISA={isa} {more}"
                ninja.compile(f"{kernel}_{isa}", command, ROOT / f"csrc/cpu/{kernel}.cpp")
        ninja.link(output, f"{cxx.command} {cxx.shared} $in {cxx.openmp_link} -o $out")

    def build_cuda(self, ninja, output):
        root = cuda_root(self.nvcc)
        nvcc = f"{quoted(self.nvcc)} -std=c++17 -O3 -fmad=false {arch_flags()} {self.includes}"
        host = "-Xcompiler -fPIC,-fvisibility=hidden"
        for kernel in ("lif", "norm_lif", "distill"):  # the longest first
            for io in ("Float32", "Float16", "BFloat16"):
                source, command = ROOT / f"csrc/cuda/{kernel}.cu", f"{nvcc} {host} -DSNN_IO={io}"
                ninja.compile(f"{kernel}_{io}", command, source)
        for kernel in ("norm_lif_totals", "distill_finish", "spikes"):
            ninja.compile(kernel, f"{nvcc} {host}", ROOT / f"csrc/cuda/{kernel}.cu")
        includes = f"{self.includes} {self.bindings} -I{quoted(root / 'include')}"
        for source in sorted((ROOT / "csrc/cuda").glob("*.cpp")):
            ninja.compile(
                source.stem, f"{self.compiler.command} {CXX_FLAGS} -O1 {includes}", source
            )
        ninja.link(output, f"{quoted(self.nvcc)} -shared -cudart static $in -o $out")


class BuildPyWithKernels(build_py):
    """Adds to the package what a checkout keeps beside it: the Triton kernels, and the device code
    that is compiled at first use where there was no nvcc at install."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        shipped = {
            p: f"kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py") if p.stem != "__init__"
        }
        for pattern in ("include/*.h", "cuda/*.h", "cuda/*.cuh"):
            for source in (ROOT / "csrc").glob(pattern):
                shipped[source] = f"_csrc/{source.relative_to(ROOT / 'csrc')}"
        for source, place in sorted(shipped.items()):
            target = Path(self.build_lib, "snnfast", place)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(source), str(target))


setup(
    ext_modules=[Extension("snnfast._C", []), Extension("snnfast._cuda", [])],
    cmdclass={"build_ext": BuildWithNinja, "build_py": BuildPyWithKernels},
)
