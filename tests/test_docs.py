"""The pages of docs: their Python blocks run in order and print what the text behind them says."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peer_neurons import package

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "pages").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)
NEW_PROCESS = "<!-- in a new process -->"


def follow(text: str, page: str) -> None:
    names, printed = {"__name__": "docs"}, ""
    for found in BLOCK.finditer(text):
        kind, block = found.groups()
        line = text[: found.start()].count("\n") + 1
        if kind == "text":
            assert printed == block, f"{page}, line {line}: {printed}"
            printed = ""
            continue
        assert not printed, f"{page}, line {line}: what was printed before is not on the page"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, f"{page}, line {line}", "exec"), names)
        printed = out.getvalue()
    assert not printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page):
    text = page.read_text()
    if "from spikingjelly" in text:
        pytest.importorskip("spikingjelly", reason="make peers installs it")
    if "import snntorch" in text:
        package("snntorch")
    parts = text.split(NEW_PROCESS)
    if len(parts) == 1:
        follow(text, page.name)
        return
    above = 0
    for part in parts:
        done = subprocess.run(
            [sys.executable, __file__, page.name], input="\n" * above + part, text=True,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-1500:]
        above += part.count("\n")


if __name__ == "__main__":
    follow(sys.stdin.read(), sys.argv[1])
