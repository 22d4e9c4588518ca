"""Arrows point down only, and the text of the repository speaks to its users."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Who may import whom, besides itself; all may read what is EVERYBODYS.
MAY_IMPORT = {
    "surrogate": set(),
    "packages": set(),
    "program": set(),
    "reference": {"program"},
    "kernels": set(),
    "backends": {"kernels", "program"},
    "ops": {"backends", "reference", "program"},
    "neurons": {"ops", "reference"},
    "nn": {"ops", "neurons"},
    "_info": {"ops"},
    "interop": {"nn", "neurons", "ops", "backends", "reference", "program"},
    "monitoring": {"nn", "ops"},
    "distill": {"ops"},
    "models": {"nn"},
    "data": set(),
    "train": {"models", "distill", "data", "interop", "monitoring", "nn", "ops", "recipes"},
    "recipes": set(),
    "cli": {"train", "_info", "info", "keep_memory", "recipes"},
    "__main__": {"cli"},
}
EVERYBODYS = {"surrogate", "packages"}
BACKENDS = {"cpu", "cuda", "triton"}


def modules():
    for base, package in ((ROOT / "snnfast", "snnfast"), (ROOT / "kernels", "snnfast.kernels")):
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            name = ".".join((package, *(p for p in parts if p != "__init__")))
            if name != "snnfast":
                yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v))
def test_arrows_point_down(name, path):
    layer = name.split(".")[1]
    assert layer in MAY_IMPORT, f"{name} has no place in the house"
    for target in imported(path):
        assert target.split(".")[0] not in ("benchmarks", "tests"), f"{name} imports {target}"
        if not target.startswith("snnfast."):
            continue
        other = target.split(".")[1]
        if other in (layer, *EVERYBODYS) or other.startswith(("_C", "_cuda", "__version__")):
            continue
        assert other in MAY_IMPORT[layer], f"{name} imports {target}"
    own = name.split(".")[2] if layer == "backends" and name.count(".") > 1 else None
    if own in BACKENDS:
        others = {t.split(".")[2] for t in imported(path) if t.startswith("snnfast.backends.")}
        assert not others & (BACKENDS - {own}), f"{name} knows another backend"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v))
def test_what_is_private_stays_at_home(name, path):
    """Names with an underscore belong to their file, modules with one to their folder."""
    ours, room = {}, name.rsplit(".", 1)[0]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("snnfast"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours[alias.asname or alias.name] = whole
                private = [part for part in whole.split(".") if re.match(r"_[a-z]", part)]
                home = name in (whole, node.module) or whole.startswith(f"{room}._")
                assert not private or home or private in (["_C"], ["_info"]), f"{name}: {whole}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            of = getattr(node.value, "id", None)
            assert of not in ours, f"{name} uses {ours.get(of)}.{node.attr}"


def test_one_column_per_op():
    """Every op has the same name in every room that has it."""
    rooms = {
        "kernels": {"lif", "norm_lif", "distill", "spikes"},
        "snnfast/reference": {"lif", "norm_lif", "distill", "spikes"},
        "snnfast/ops": {"lif", "norm_lif", "distill", "spikes"},
    } | {f"snnfast/backends/{name}": {"lif", "norm_lif", "distill", "spikes"} for name in BACKENDS}
    for room, ops in rooms.items():
        found = {path.stem for path in (ROOT / room).glob("*.py")}
        assert ops <= found, f"{room} lacks {ops - found}"


def test_surrogate_identifiers_agree():
    from snnfast.surrogate import TABLE

    header = (ROOT / "csrc/include/surrogate.h").read_text()
    ids = dict(re.findall(r"k(\w+) = (\d+),", header))
    for cls in TABLE.values():
        assert int(ids[cls.__name__]) == cls.ID
    assert int(ids["SurrogateCount"]) == len(TABLE)


def test_self_targets_have_one_number_everywhere():
    from snnfast.backends import spec
    from snnfast.reference import distill

    header = (ROOT / "csrc/include/distill.h").read_text()
    for name in ("None", "Mean", "Correct"):
        (number,) = re.findall(rf"kSelf{name} = (\d+)", header)
        assert int(number) == getattr(spec, f"SELF_{name.upper()}")
        assert int(number) == getattr(distill, f"SELF_{name.upper()}")


FIRST_USE = """
import sys, torch, snnfast
x = torch.randn(4, 3, 5, requires_grad=True)
with snnfast.packed_spikes(), snnfast.monitor(block := snnfast.nn.BatchNormLIF(5)):
    block(x).sum().backward()
snnfast.twkd_loss(snnfast.lif(x), torch.zeros(3).long(), alpha=0.0).backward()
assert "torch._dynamo" not in sys.modules
"""


def test_first_use_does_not_import_the_compiler():
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
