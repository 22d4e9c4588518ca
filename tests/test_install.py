"""Installed as a user would: from a checkout, from an sdist, with an nvcc that does not work.

The compilers are stubs: what they link is the module that these tests run with, so that an
installation takes seconds. ``make package`` does the same with the real ones, in an environment
that has nothing else.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = importlib.util.find_spec("snnfast._C").origin
COMPILER = f"""#!{sys.executable}
import shutil, sys
if "-o" in sys.argv and "/dev/null" not in sys.argv:
    output = sys.argv[sys.argv.index("-o") + 1]
    if "-shared" in sys.argv:
        shutil.copy({MODULE!r}, output)
    else:
        open(output, "w").close()
"""
# A compiler for another machine, whose OpenMP asks for an option.
TARGET = """
if sys.argv[1:] == ["-dumpmachine"]:
    print("{target}")
elif "/dev/null" in sys.argv:
    sys.exit("{openmp}" not in sys.argv or ("-lomp" in sys.argv) != ("{openmp}" == "-lomp"))
"""
NVCC = {
    "silent": "#!/bin/sh\nexit 1\n",
    "too old": "#!/bin/sh\necho \"nvcc fatal   : Value 'c++17' is not defined\" >&2\nexit 1\n",
    "of another machine": "\x7fELF",
}
SCRIPT = """
import snnfast, torch
import snnfast.kernels.lif
from snnfast.backends.cuda import launch

x = torch.rand(4, 8)
print(snnfast.__file__)
print(snnfast.kernels.lif.__file__)
print(launch.sources())
print(snnfast.explain(snnfast.lif, x)[0][1])
try:
    import kernels
    print(kernels.__name__)
except ImportError as error:
    print(error)
print(snnfast.info())
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


class Machine:
    """A folder with a checkout, and an environment that has what snnfast depends on."""

    def __init__(self, folder):
        self.folder, self.checkout = folder, folder / "work" / "snnfast"
        skip = shutil.ignore_patterns(
            ".*",
            "build",
            "runs",
            "tests",
            "benchmarks",
            "*.so",
            "*.egg-info",
            "__pycache__",
            "_no_*",
        )
        shutil.copytree(ROOT, self.checkout, ignore=skip)
        venv.create(folder / "env")
        self.python = folder / "env/bin/python"
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        # Paths in there that point on to a checkout are not followed.
        borrowed = dict.fromkeys(path for path in sys.path if path.endswith("-packages"))
        (self.packages / "borrowed.pth").write_text("\n".join(borrowed))
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "CXX": str(executable(folder / "bin/g++", COMPILER)),
            "SNNFAST_CUDA": "0",
        }

    def run(self, *command, cwd, ok=True, **environment):
        done = subprocess.run(
            [self.python, *command],
            cwd=cwd,
            env=self.environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert (done.returncode == 0) == ok, done.stdout
        return done.stdout

    def install(self, *what):
        pip = ("-m", "pip", "install", "--no-build-isolation", "--no-deps")
        self.run(*pip, *what, cwd=self.folder)

    def build_modules(self, ok=True, **environment):
        command = ("setup.py", "build_ext", "--inplace")
        return self.run(*command, cwd=self.checkout, ok=ok, **environment)

    def info(self):
        command = ("-c", "import snnfast; print(snnfast.info())")
        return self.run(*command, cwd=self.checkout).splitlines()

    def build(self, kind, source, output):
        hook = f"import setuptools.build_meta as b; b.build_{kind}({str(output)!r})"
        self.run("-c", hook, cwd=source)
        (built,) = output.iterdir()
        return built

    def script(self, folder):
        (folder / "my_script.py").write_text(SCRIPT)
        return self.run("my_script.py", cwd=folder).splitlines()


def test_a_script_beside_the_checkout(machine):
    machine.install("-e", machine.checkout)
    package, kernels, sources, backend, refusal, *_ = machine.script(machine.checkout.parent)
    assert package == str(machine.checkout / "snnfast/__init__.py")
    assert kernels == str(machine.checkout / "kernels/lif.py")
    assert sources == str(machine.checkout / "csrc")
    assert backend == "cpu"
    assert "import snnfast.kernels" in refusal
    (path,) = machine.packages.glob("__editable__*")
    assert path.read_text().strip() == str(machine.checkout)
    (names,) = machine.packages.glob("snnfast-*.dist-info/top_level.txt")
    assert names.read_text().split() == ["snnfast"]


def test_a_wheel_of_the_sdist_beside_another_kernels(machine):
    sdist = machine.build("sdist", machine.checkout, machine.folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(machine.folder / "unpacked", filter="data")
    (source,) = (machine.folder / "unpacked").iterdir()
    for folder in ("csrc", "kernels", "snnfast"):
        assert {p.name for p in (machine.checkout / folder).rglob("*") if p.suffix != ".pyc"} - {
            "__pycache__"
        } == {p.name for p in (source / folder).rglob("*")}, folder
    wheel = machine.build("wheel", source, machine.folder / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"snnfast"}

    (machine.packages / "kernels").mkdir()
    for name in ("__init__", "lif", "neuron"):
        (machine.packages / f"kernels/{name}.py").write_text("OTHER = True\n")
    machine.install(wheel)
    package, kernels, sources, backend, other, *info = machine.script(machine.folder)
    installed = machine.packages / "snnfast"
    assert package == str(installed / "__init__.py")
    assert kernels == str(installed / "kernels/lif.py")
    assert sources == str(installed / "_csrc")
    assert backend == "cpu" and other == "kernels"
    (line,) = (line for line in info if line.startswith("cuda module"))
    assert line.endswith("snnfast._cuda was not built: SNNFAST_CUDA=0 at install")


@pytest.mark.parametrize("nvcc", NVCC)
def test_an_nvcc_that_fails(machine, nvcc):
    stub = executable(machine.folder / "cuda/bin/nvcc", NVCC[nvcc])
    stale = machine.checkout / "snnfast/_cuda.cpython-311-x86_64-linux-gnu.so"
    stale.write_bytes(b"of an earlier build")
    log = machine.build_modules(CUDA_HOME=str(machine.folder / "cuda"), SNNFAST_CUDA="auto")
    assert f"the CUDA module for sm_80, sm_90 with {stub}" in log
    assert "SNNFAST_CUDA=0 leaves it out" in log
    assert list((machine.checkout / "snnfast").glob("_C.*.so")) and not stale.exists()
    (line,) = (line for line in machine.info() if line.startswith("cuda module"))
    assert f"snnfast._cuda was not built: {stub} failed at install: " in line
    if nvcc == "too old":
        assert line.endswith("nvcc fatal   : Value 'c++17' is not defined")

    log = machine.build_modules(False, CUDA_HOME=str(machine.folder / "cuda"), SNNFAST_CUDA="1")
    assert log.splitlines()[-1].startswith(f"setup: SNNFAST_CUDA=1, but {stub} failed at install: ")
    assert "Traceback" not in log


def test_an_nvcc_that_works_again_leaves_no_note(machine):
    note = machine.checkout / "snnfast/_no_cuda.txt"
    note.write_text("it was not there\n")
    executable(machine.folder / "cuda/bin/nvcc", COMPILER)
    machine.build_modules(CUDA_HOME=str(machine.folder / "cuda"), SNNFAST_CUDA="1")
    assert not note.exists() and list((machine.checkout / "snnfast").glob("_cuda.*.so"))
    # What was linked is no CUDA module: it is there and does not load.
    assert "snnfast._cuda does not load: " in "\n".join(machine.info())


@pytest.mark.parametrize("openmp", ("-fopenmp", "-lomp", "none"))
@pytest.mark.parametrize(
    ("target", "objects", "link"),
    (
        ("x86_64-linux-gnu", {"baseline", "avx2", "avx512"}, "-shared"),
        ("aarch64-linux-gnu", {"baseline"}, "-shared"),
        ("arm64-apple-darwin23.1.0", {"baseline"}, "-shared -undefined dynamic_lookup"),
    ),
)
def test_what_is_built_is_for_the_compiler_s_target(machine, target, objects, link, openmp):
    """And not for the machine that it is built on."""
    text = COMPILER + TARGET.format(target=target, openmp=openmp)
    log = machine.build_modules(CXX=str(executable(machine.folder / "bin/c++", text)))
    *compiled, linked = (line for line in log.splitlines() if line.startswith("["))
    lif = {line.split("-DSNN_ISA=")[1].split()[0]: line for line in compiled if "lif_" in line}
    assert lif.keys() == objects and ("-mavx2" in log) == ("-DSNN_HAVE_AVX2" in log)
    assert ("-mavx2" in log) == ("avx2" in objects) and f" {link} bindings.o " in linked
    # The baseline is slow only where there is something better.
    assert ("-O1" in lif["baseline"]) == (len(objects) > 1)
    probed = {"-fopenmp": "-fopenmp", "-lomp": "-Xpreprocessor -fopenmp", "none": "-Wno-unknown"}
    assert all(probed[openmp] in line for line in compiled)
    given = {option for option in probed if f" {option} " in linked}
    assert given == ({openmp} - {"none"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    (
        ("CXX", "/nowhere/g++", "setup: no C++ compiler"),
        ("CXX", "false", "setup: the CPU module could not be built"),
        ("SNNFAST_CUDA", "yes", "setup: SNNFAST_CUDA must be auto, 0 or 1, got 'yes'"),
    ),
)
def test_what_cannot_be_built_is_said(machine, variable, value, message):
    log = machine.run("setup.py", "build_ext", cwd=machine.checkout, ok=False, **{variable: value})
    assert message in log and "Traceback" not in log
