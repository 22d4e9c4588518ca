"""The names of `snnfast`, which come at first use: what a type checker and Python know of them."""

import ast
import subprocess
import sys
from pathlib import Path

import snnfast


def test_a_type_checker_sees_the_names_that_there_are():
    tree = ast.parse(Path(snnfast.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told = {
        name.name: None if line.module == "snnfast" else line.module
        for line in block.body
        for name in line.names
    }
    assert told == snnfast._HOMES and {*told, "__version__"} == set(snnfast.__all__)
    assert (Path(snnfast.__file__).parent / "py.typed").exists()


def test_no_warning_at_import():
    code = "import snnfast; [getattr(snnfast, name) for name in snnfast.__all__]"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
