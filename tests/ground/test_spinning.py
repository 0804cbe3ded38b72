"""How long threads of torch spin: set before torch is loaded, wherever dcdctl begins, unless the user has set it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

import pytest
from paths import ROOT
from processes import run

import dcdctl

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SHOW = f"import os, sys; print('torch' in sys.modules, [os.environ.get(name) for name in {SETTINGS}])"
COMMAND = "import runpy, sys; sys.argv = ['dcdctl', '--version']; runpy.run_module('dcdctl', run_name='__main__')"
WAYS = {
    "import dcdctl": f"import dcdctl; {SHOW}",
    "python -m dcdctl": f"import atexit; atexit.register(lambda: exec({SHOW!r}, {{}})); {COMMAND}",
    "a worker of a cluster": f"from dcdctl.core.engines.ray_worker import RayWorker; {SHOW}",
    "a process that it starts": f"""
import multiprocessing, dcdctl
context = multiprocessing.get_context("spawn")
child = context.Process(target=exec, args=({SHOW!r},))
child.start()
child.join()
""",
}


def printed(script: str, user: Mapping[str, str]) -> str:
    """The last line that a new Python prints, and all of stderr, with these settings of its user."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"PYTHONPATH": str(ROOT), **user}
    done = run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1] if done.stdout else done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_wait_sleep_soon_wherever_dcdctl_begins(way):
    assert printed(WAYS[way], {}) == f"False ['{dcdctl.SPINS}', None]"


@pytest.mark.parametrize(
    ("user", "kept"), [({SETTINGS[0]: "7"}, "['7', None]"), ({SETTINGS[1]: "active"}, "[None, 'active']")]
)
def test_what_the_user_has_set_stays(user, kept):
    assert printed(WAYS["import dcdctl"], user) == f"False {kept}"


def test_a_program_that_has_torch_keeps_its_environment():
    # It would be read by no thread of this process.
    assert printed(f"import sys; sys.modules['torch'] = sys; {WAYS['import dcdctl']}", {}) == "True [None, None]"


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux alone")
def test_libgomp_reads_it():
    said = printed("import dcdctl, torch", {"OMP_DISPLAY_ENV": "verbose"})
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said) == [dcdctl.SPINS]
