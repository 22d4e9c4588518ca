"""The pages of docs/: their Python blocks run in order and print what the text behind them says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from peer_neurons import package

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page):
    if "import snntorch" in page.read_text():
        package("snntorch")
    names, printed = {"__name__": "docs"}, ""
    for found in BLOCK.finditer(page.read_text()):
        kind, block = found.groups()
        line = page.read_text()[: found.start()].count("\n") + 1
        if kind == "text":
            assert printed == block, f"{page.name}, line {line}"
            printed = ""
            continue
        assert not printed, f"{page.name}, line {line}: what was printed before is not on the page"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, f"{page.name}, line {line}", "exec"), names)
        printed = out.getvalue()
    assert not printed
