"""The terminal, the exit codes and the help of every command."""

from __future__ import annotations

import errno
import gc
import io
import json
import signal
import sys
import threading

import processes
import pytest
import typer
from command_line import error_of, run
from typer.testing import CliRunner

from dcdctl import __version__
from dcdctl.cli.app import COMMANDS, app, main
from dcdctl.cli.views import terminal
from dcdctl.core import machine
from dcdctl.core.errors import SourceError, StaleError

NAMES = [name for name, *_ in COMMANDS]


def small_app() -> typer.Typer:
    """One command for each way to end."""
    small = typer.Typer(cls=terminal.ErrorGroup, rich_markup_mode=None, pretty_exceptions_enable=False)

    @small.command()
    def stale() -> None:
        raise StaleError("/data/[coco]/x was made\nfrom [red]another", hint="run `dcdctl cache-teacher`")

    @small.command()
    def sources() -> None:
        raise SourceError(
            "no source is available", hint="or place the file in a folder", details=["hub: 404", "mirror: refused\nit"]
        )

    @small.command()
    def thread(is_full: bool = True, is_repeated: bool = False) -> None:
        error = (
            OSError(errno.ENOSPC, "No space left on device", "events.out")
            if is_full
            else ZeroDivisionError("of a thread")
        )

        def write() -> None:
            raise error

        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        if is_repeated:
            raise error

    @small.command()
    def bug() -> None:
        raise ZeroDivisionError("ours")

    @small.command()
    def panic() -> None:
        class PanicException(BaseException):
            """What tokenizers raises."""

        raise PanicException("ThreadPoolBuildError { kind: IOError(Os { code: 11 }) }")

    @small.command()
    def end() -> None:
        raise typer.Exit(3)

    @small.command()
    def stop() -> None:
        raise KeyboardInterrupt

    return small


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The clock of the bars; set `.now`."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(terminal.time, "monotonic", lambda: Clock.now)
    return Clock


def test_an_error_is_one_line_on_stderr_with_the_users_text_unchanged():
    result = CliRunner().invoke(small_app(), ["stale"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: /data/[coco]/x was made from [red]another; run `dcdctl cache-teacher`\n"


def test_several_reasons_have_a_line_each():
    result = CliRunner().invoke(small_app(), ["sources"])
    assert (
        result.stderr
        == "error: no source is available:\n  hub: 404\n  mirror: refused it\n  or place the file in a folder\n"
    )


@pytest.mark.parametrize(("value", "is_colored"), [("1", False), ("", True)])
def test_an_error_has_no_color_with_no_color(value, is_colored, monkeypatch):
    monkeypatch.setenv("NO_COLOR", value)
    result = CliRunner().invoke(small_app(), ["stale"], color=True)
    assert ("\x1b[31m" in result.stderr) == is_colored


def test_a_bug_keeps_its_traceback():
    assert isinstance(CliRunner().invoke(small_app(), ["bug"]).exception, ZeroDivisionError)


def test_a_thread_that_finds_no_memory_in_a_library_in_rust_is_one_line():
    result = CliRunner().invoke(small_app(), ["panic"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no further thread can be started, for lack of memory or because of a limit")
    assert "\n" not in result.stderr[:-1]


LIMITED = "`ulimit -v` is 500.0 MB: commands with a model may end for lack of memory\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (
            "bug",
            1,
            "error: this ended with ZeroDivisionError: ours, perhaps for lack of memory; `ulimit -v` is 500.0 MB; "
            "raise it and try again\n",
        ),
        ("stale", 1, "error: /data/[coco]/x was made from [red]another; run `dcdctl cache-teacher`\n"),
        ("end", 3, ""),
        ("stop", 130, "interrupted: finished work, if any, is kept\n"),
    ],
)
def test_a_small_limit_of_memory_is_said_first_and_explains_what_no_library_explains(
    command, code, message, monkeypatch
):
    monkeypatch.setattr(machine, "address_space", lambda: 500_000_000)
    result = CliRunner().invoke(small_app(), [command])
    assert (result.exit_code, result.stderr) == (code, LIMITED + message)


def test_a_large_limit_of_memory_is_not_said(monkeypatch):
    monkeypatch.setattr(machine, "address_space", lambda: 8 * 10**9)
    assert CliRunner().invoke(small_app(), ["end"]).stderr == ""


def test_the_limit_of_memory_is_that_of_ulimit():
    script = "from dcdctl.core import machine; print(machine.address_space())"
    done = processes.run(
        ["bash", "-c", 'ulimit -v 3000000; exec "$0" -c "$1"', sys.executable, script], capture_output=True, text=True
    )
    assert done.stdout == f"{3_000_000 * 1024}\n", done.stderr


@pytest.mark.parametrize("options", [[], ["--is-repeated"]])
def test_a_full_disk_in_a_thread_lets_the_command_fail_with_one_line(options):
    result = CliRunner().invoke(small_app(), ["thread", *options])
    assert result.exit_code == 1
    assert result.stderr == "error: there is no room left for events.out; make room and try again\n"


def test_a_bug_in_a_thread_keeps_its_traceback(monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(str(args.exc_value)))
    CliRunner().invoke(small_app(), ["thread", "--no-is-full"])
    assert shown == ["of a thread"]


@pytest.mark.parametrize(("word", "is_similar"), [("distil", True), ("mine", False)])
def test_only_a_similar_command_is_suggested(word, is_similar):
    result = CliRunner().invoke(app, [word])
    assert result.exit_code == 2
    assert ("Did you mean 'distill'?" in result.stderr, "Did you mean" in result.stderr) == (is_similar, is_similar)


@pytest.mark.parametrize("command", ["distill", "finetune-teacher"])
def test_a_taken_run_folder_is_refused_before_the_recipe_is_read_and_fp16_on_a_cpu_before_the_data(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    words = [command, "photos", "--data", "absent", "--device", "cpu"]
    taken = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run"), "--set", "nonsense=1"])
    assert f"{tmp_path / 'run'} already holds a run; resume with --resume, or name another" in taken.stderr
    slow = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "new"), "--precision", "fp16"])
    assert "--precision fp16 is for GPUs, and this computes on a CPU; use fp32, or try bf16" in slow.stderr


def test_an_interrupt_exits_with_130_and_says_what_is_kept():
    result = CliRunner().invoke(small_app(), ["stop"])
    assert result.exit_code == 130
    assert "interrupted: finished work, if any, is kept" in result.stderr


INTERRUPTED = """
import atexit, os, runpy, signal, sys, types

class Interrupted(types.ModuleType):
    def __getattr__(self, name):
        os.kill(os.getpid(), signal.SIGINT)  # while the commands are imported

def end():
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
    sys.exit(130)

commands = Interrupted("app") if sys.argv[1] == "import" else types.ModuleType("app")
commands.main = end
sys.modules["dcdctl.cli.app"] = commands
runpy.run_module("dcdctl", run_name="__main__")
"""


@pytest.mark.parametrize(("moment", "codes"), [("import", {130}), ("end", {130, -signal.SIGINT})])
def test_ctrl_c_while_commands_are_imported_and_another_one_at_the_end_show_no_traceback(moment, codes):
    done = processes.run([sys.executable, "-c", INTERRUPTED, moment], capture_output=True, text=True)
    # Python 3.12 ends by itself where 3.11 is ended by the signal.
    assert done.returncode in codes
    assert done.stderr == ""


@pytest.mark.parametrize("line", ["eval ~no-such-user/run --data x", "search ~no-such-user/index dog"])
def test_the_home_folder_of_nobody_is_one_line(line):
    assert "a path begins with ~, and that home folder is not known" in error_of(line)


@pytest.mark.parametrize("command", NAMES)
def test_torchrun_is_for_trainings(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(app, [command, "--no-such-option"])
    is_refused = "is one process, and WORLD_SIZE is 2: torchrun is for distill and finetune-teacher" in result.stderr
    assert is_refused == (command not in ("distill", "finetune-teacher"))
    if is_refused:
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {command} is")
        assert "--engine processes:N takes several processes and GPUs of this machine" in result.stderr


def test_a_missing_corpus_exits_with_1_and_names_the_command_that_makes_one(tmp_path):
    error = error_of(f"eval scenes-vilt --data {tmp_path}/absent")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "dcdctl prepare" in error


@pytest.mark.parametrize("line", ["bench", "distil", "distill --alpha 1"])
def test_wrong_usage_exits_with_2(line):
    assert "Error: " in error_of(line, code=2)


def test_the_help_lists_every_command_under_its_panel():
    lines = [line.strip() for line in run("--help").stdout.splitlines()]
    listed = [line.split()[0] for line in lines if line and line.split()[0] in NAMES]
    assert sorted(listed) == sorted(NAMES)
    assert lines.index("Teacher:") < lines.index("Student:")


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"dcdctl {__version__}\n"


def test_python_m_dcdctl_is_the_same_program():
    result = processes.run([sys.executable, "-m", "dcdctl", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"dcdctl {__version__}\n"


def test_help_loads_nothing_heavy():
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "PIL", "rich"}
    code = (
        "import sys\nfrom dcdctl.cli.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"print('loaded', sorted({heavy!r} & set(sys.modules)))"
    )
    result = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: " in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_a_bar_in_a_pipe_prints_a_line_every_ten_seconds_and_at_the_end(clock, capsys):
    with terminal.bar("score [x]", total=100, unit="pairs") as advance:
        for second in range(1, 21):
            clock.now = float(second)
            advance(5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "score [x]: 50/100 pairs, 5 pairs/s, 0:10 left",
        "score [x]: 100/100 pairs, 5 pairs/s",
        "score [x]: 100 pairs in 0:20, 5 pairs/s",
    ]


def test_a_bar_of_failed_work_does_not_report_completion(clock, capsys):
    with terminal.bar("score", total=0, unit="pairs"):
        pass
    assert capsys.readouterr().err == ""
    with pytest.raises(StaleError), terminal.bar("score", total=2, unit="pairs"):
        raise StaleError("no")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_shows_label_rate_and_time_left_and_does_not_touch_stdout(clock, monkeypatch, capsys):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.bar("score [red]", total=100, unit="pairs") as advance:
        for batch in range(1, 5):
            clock.now = 2.5 * batch
            advance(5)
        terminal.show("a result")
    assert "score [red]" in screen.getvalue()
    assert "20/100 pairs, 2 pairs/s, 0:40 left" in screen.getvalue()
    assert capsys.readouterr().out == "a result\n"


def test_a_table_in_a_pipe_keeps_long_cells_and_square_brackets(capsys):
    long = "[coco] " + "x" * 150
    terminal.show_table("Recall [%]", ("model", "R@1"), [(long, 55.25)], caption="[a] caption")
    printed = capsys.readouterr().out
    assert long in printed
    assert "Recall [%]" in printed
    assert "[a] caption" in printed
    assert "55.25" in printed


def test_json_is_one_document_and_has_no_nan(capsys):
    terminal.show_json({"R@1": 1.5, "name": "é"})
    assert json.loads(capsys.readouterr().out) == {"R@1": 1.5, "name": "é"}
    with pytest.raises(ValueError, match="JSON"):
        terminal.show_json({"R@1": float("nan")})


def test_a_command_looks_for_garbage_less_often_than_python_does(monkeypatch, capsys):
    before = gc.get_threshold()
    monkeypatch.setattr(sys, "argv", ["dcdctl", "--version"])
    try:
        gc.set_threshold(700, 10, 10)
        with pytest.raises(SystemExit):
            main()
        assert gc.get_threshold() == (20_000, 10, 10)
    finally:
        gc.set_threshold(*before)
