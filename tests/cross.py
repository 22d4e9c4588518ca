"""Compiles and links the CPU module for machines that are not here; nothing of it runs.

python tests/cross.py                          # every target
python tests/cross.py --as aarch64-macos ...   # a target's compiler: setup.py's CXX

The compiler is ziglang's, which carries the headers of all of them.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/cross"
# Target, and the first bytes of what is linked: the format and, for ELF at 18, the machine.
ELF, MACHO = b"\x7fELF", b"\xcf\xfa\xed\xfe"
TARGETS = {
    "aarch64-linux-gnu.2.28": (ELF, 18, b"\xb7\x00"),
    "x86_64-macos": (MACHO, 4, b"\x07\x00\x00\x01"),
    "aarch64-macos": (MACHO, 4, b"\x0c\x00\x00\x01"),
}


def compiler(target: str, flags: list[str]) -> int:
    """As little work as there can be, since nothing runs: no C++ library, which would be compiled
    for each target, and none of zig's checks and debug information."""
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target, *flags]
    zig += [] if "-dumpmachine" in flags else ["-O0", "-g0", "-fno-sanitize=all"]
    zig += ["-nostdlib++"] if "-shared" in flags else []
    cache = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(FOLDER / "cache")}
    return subprocess.run(zig, env=cache).returncode


def build(target: str) -> None:
    to = FOLDER / target
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += [f"--build-temp={to}", f"--build-lib={to}/lib"]
    own = {"CXX": f"{sys.executable} {__file__} --as {target}", "SNNFAST_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=os.environ | own, check=True)
    module = to / f"lib/snnfast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    head, (kind, at, machine) = module.read_bytes()[:32], TARGETS[target]
    if not head.startswith(kind) or head[at : at + len(machine)] != machine:
        raise SystemExit(f"cross: {module} must be for {target}, begins with {head.hex()}")
    print(f"{target}: {module.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        sys.exit(compiler(sys.argv[2], sys.argv[3:]))
    for name in sys.argv[1:] or TARGETS:
        build(name)
