"""The ``backend`` of a test: each that there is, or those that its marker ``backends`` names.

Tests on a backend that needs another process run there, all of a file at once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import backends
import pytest

_OUTCOMES = pytest.StashKey()


def pytest_configure(config):
    config.addinivalue_line("markers", "backends(*which): the values of backends.py to run on")
    config.stash[_OUTCOMES] = {}


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    """Innermost, so that the backends find what the one before them compared with."""
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("backends")
        which = backends.EVERY if marker is None else marker.args
        metafunc.parametrize("backend", backends.parameters(which), indirect=True)


@pytest.fixture
def backend(request):
    with request.param.entered():
        yield request.param


def _runs_elsewhere(item) -> bool:
    backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
    return bool(backend) and backend.elsewhere


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not _runs_elsewhere(pyfuncitem):
        return None
    backend, outcomes = pyfuncitem.callspec.params["backend"], pyfuncitem.config.stash[_OUTCOMES]
    key = (pyfuncitem.path, backend)
    if key not in outcomes:
        outcomes[key] = _run_elsewhere(pyfuncitem, backend)
    skipped, error = outcomes[key].get(pyfuncitem.name, (None, "it did not run"))
    if skipped is not None:
        pytest.skip(skipped)
    if error is not None:
        pytest.fail(f"in a pytest with {backend.environment}:\n{error}", pytrace=False)
    return True


def _run_elsewhere(item, backend) -> dict[str, tuple[str | None, str | None]]:
    """{name: (why it was skipped, its error)} of this session's tests in that file on a backend."""
    chosen = [
        other.nodeid
        for other in item.session.items
        if other.path == item.path
        and _runs_elsewhere(other)
        and other.callspec.params["backend"] is backend
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments, report = Path(folder, "arguments"), Path(folder, "report.xml")
        arguments.write_text("\n".join(chosen))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{arguments}"]
        done = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=item.config.rootpath,
            env={**os.environ, "OMP_NUM_THREADS": "1", **backend.environment},
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):  # 1: some failed
            pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            skipped, errors = case.find("skipped"), [*case.iter("failure"), *case.iter("error")]
            found[case.get("name")] = (
                None if skipped is None else skipped.get("message"),
                "\n".join(error.text or "" for error in errors) if errors else None,
            )
        return found
