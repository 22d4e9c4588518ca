"""A benchmark as a user starts it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import environment


def start(name: str, arguments: str, folder: Path, **variables: str) -> tuple[dict, str, Path]:
    """Document, printed text and folder of one run of bench_NAME.py."""
    env = {k: v for k, v in os.environ.items() if k not in environment.MALLOC}
    path = os.pathsep.join([str(environment.ROOT), os.environ.get("PYTHONPATH", "")])
    script = environment.ROOT / "benchmarks" / f"bench_{name}.py"
    found = subprocess.run(
        [sys.executable, script, "--device", "cpu", *arguments.split(), "--output", folder],
        env=env | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return json.loads((folder / f"bench_{name}.json").read_text()), found.stdout, folder


def is_whole(name: str, run: tuple[dict, str, Path]) -> None:
    """The document says what it ran on and under and has a row a line, the text has the verdict,
    the plot is a PNG."""
    document, text, folder = run
    env = document["environment"]
    assert {"commit", "cpu", "cores_available", "threads", "versions", "malloc"} <= env.keys()
    assert env["malloc"] == environment.MALLOC
    assert text.count("restarting with") == 1
    assert "other_work" in document and isinstance(document["busy"], bool)
    lines = (folder / f"bench_{name}.json").read_text().splitlines()
    rows = [json.loads(line.strip(" ,")) for line in lines if '"contender"' in line]
    assert [row for row in rows if "kind" in row] == document["rows"]
    assert "Targets" in text and "Slower than a peer in" in text
    if importlib.util.find_spec("matplotlib"):
        assert (folder / f"bench_{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
