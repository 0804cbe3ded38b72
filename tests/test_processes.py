"""What tests start: with a time limit, and without the settings of the user who runs the tests."""

from __future__ import annotations

import os
import re
import sys

import pytest
from forks import LIBRARIES, run_forked
from paths import ROOT
from processes import IS_PLAIN, TIMEOUT_S, clear_user_settings, run

SOURCES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "processes.py"]
WITHOUT_LIMIT = re.compile(
    r"(?<![\w'\"])subprocess\.(run|call|check_call|check_output)\(|\bcommunicate\((?!.*TIMEOUT_S)|timeout=[\d.]+"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_wait_for_a_process_has_the_one_time_limit(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines if WITHOUT_LIMIT.search(line) and "WITHOUT_LIMIT" not in line] == []
    assert TIMEOUT_S >= 600


def test_settings_of_the_user_reach_no_test_and_no_process():
    settings = {
        "HF_HOME": "/nowhere",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "x",
        "DCDCTL_CACHE": "/",
        "RANK": "7",
    }
    environment = {**settings, "PATH": "/bin", "HOME": "/root"}
    clear_user_settings(environment)
    assert environment == {"PATH": "/bin", "HOME": "/root"}
    printed = run(
        [sys.executable, "-c", "import os; print(*os.environ)"], capture_output=True, text=True, check=True
    ).stdout
    assert not set(settings) & (set(printed.split()) | set(os.environ))


NEEDS_FORK = pytest.mark.skipif(IS_PLAIN or not hasattr(os, "fork"), reason="scripts run in new processes")


@NEEDS_FORK
def test_a_script_in_a_fork_finds_the_imports_of_the_tests_and_nothing_that_a_test_changed(monkeypatch):
    monkeypatch.setattr(re, "changed_by_a_test", True, raising=False)
    script = """
import os, re, sys
print(sys.argv[1:], hasattr(re, "changed_by_a_test"), os.environ["GIVEN"], __name__)
print("pytest" in sys.modules, file=sys.stderr)
"""
    assert run_forked(script, 1, "a b", environment={"GIVEN": "x"}) == ("['1', 'a b'] False x __main__\n", "True\n")
    assert "GIVEN" not in os.environ


@NEEDS_FORK
def test_a_script_in_a_fork_of_the_libraries_finds_torch_and_transformers_and_no_dcdctl():
    script = 'import sys; print(*(name in sys.modules for name in ("torch", "transformers", "dcdctl", "tiny")))'
    assert run_forked(script, imported=LIBRARIES) == ("True True False False\n", "")


KILLED = "import os, sys; print('at the end', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"


@NEEDS_FORK
@pytest.mark.parametrize(
    ("script", "message"),
    [("1 / 0", "ZeroDivisionError: "), ("import sys; sys.exit(3)", "SystemExit: 3"), (KILLED, "at the end")],
)
def test_a_script_in_a_fork_that_fails_is_an_error_with_its_messages(script, message):
    with pytest.raises(AssertionError, match=message):
        run_forked(script)
    assert run_forked("print(1)") == ("1\n", "")
