""" "Unchanged" is a diff: the same program under plain python and under the host, output and ending compared."""

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from gradwell.probe.host import Ending, _interpreter_command

SCRIPTS = Path(__file__).parents[1] / "scripts"
THYSELF = "know_thyself.py"

DRIVER = """
import os, sys
from gradwell.probe.host import die_like, run_module, run_script
from gradwell.errors import UnreadableInput
def on_end(ending):
    with open(os.environ["ON_END"], "a") as file:
        file.write(f"{ending.reason} {ending.status}\\n")
run, name, *args = (run_module, *sys.argv[2:]) if sys.argv[1] == "-m" else (run_script, *sys.argv[1:])
try:
    ending = run(name, args, on_end=on_end)
except UnreadableInput as error:
    sys.exit(f"unreadable: {error}")
die_like(ending)
"""

ENDINGS = {
    "normal": "finished 0",
    "exit-none": "exit 0",
    "exit-0": "exit 0",
    "exit-3": "exit 3",
    "exit-256": "exit 0",
    "exit-huge": "exit 255",
    "exit-text": "exit 1",
    "exit-object": "exit 1",
    "exception": "exception 1",
    "syntax": "exception 1",
    "import": "exception 1",
    "name": "exception 1",
    "hook": "exception 1",
    "broken-hook": "exception 1",
    "leaving-hook": "exit 7",
    "interrupt": "interrupted 130",
    "terminate": "terminated 143",
    "own-handler": "exit 9",
    "ignore-sigterm": "finished 0",
    "thread": "finished 0",
    "thread-error": "finished 0",
    "fork-normal": "finished 0",
    "fork-exit": "finished 0",
    "fork-error": "finished 0",
    "fork-interrupt": "finished 0",
    "fork-terminate": "finished 0",
}
if sys.version_info >= (3, 11):
    ENDINGS["group"] = "exception 1"
if sys.version_info >= (3, 12):
    del ENDINGS["exit-huge"]  # plain python 3.13.0 itself stumbles over the number


class Run(NamedTuple):
    out: str
    err: str
    status: int
    endings: list[str]


def run(command, *, folder, cwd=SCRIPTS, env=()):
    told = folder / "endings"
    told.unlink(missing_ok=True)
    settings = {"ON_END": str(told), "PYTHONHASHSEED": "0", "KNOW_THYSELF_LOG": str(folder / "log"), **dict(env)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    endings = told.read_text().splitlines() if told.exists() else []
    return Run(done.stdout, done.stderr, done.returncode, endings)


def assert_unchanged(command, *, folder, options=(), cwd=SCRIPTS, env=()):
    """Run it both ways and return how it ended under the host."""
    plain = run([*options, *command], folder=folder, cwd=cwd, env=env)
    hosted = run([*options, "-c", DRIVER, *command], folder=folder, cwd=cwd, env=env)
    assert hosted.out == plain.out
    assert hosted.err == plain.err
    assert hosted.status == plain.status
    assert plain.endings == []
    return hosted


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("end", ENDINGS)
def test_every_ending_is_pythons_own(end, tmp_path):
    hosted = assert_unchanged([THYSELF, end], folder=tmp_path)
    assert hosted.endings == [ENDINGS[end]]
    assert "main is me True" in hosted.out


def test_training_with_workers_is_bit_equal(tmp_path):
    hosted = assert_unchanged([THYSELF, "normal", "children", "torch"], folder=tmp_path)
    assert hosted.out.count("loss 0x") == 2
    assert "terminated children end with {-15}" in hosted.out
    assert hosted.endings == ["finished 0"]


def test_interpreter_options_stay(tmp_path):
    options = ["-W", "error::ResourceWarning", "-X", "utf8", "-uO"]
    hosted = assert_unchanged([THYSELF, "exit-3", "a b", "--flag"], options=options, folder=tmp_path)
    assert hosted.status == 3


def test_ctrl_c_leaves_files_flushed(tmp_path):
    hosted = assert_unchanged([THYSELF, "file"], folder=tmp_path)
    assert hosted.status == -signal.SIGINT
    assert (tmp_path / "log").read_text() == "written\n"


@pytest.mark.parametrize("start", [["start_here.py"], ["-m", "start_here"]], ids=["as a file", "with -m"])
def test_ctrl_c_however_we_were_started(start, tmp_path):
    write(tmp_path / "start_here.py", DRIVER)
    write(tmp_path / "script.py", "import atexit\natexit.register(print, 'atexit')\nraise KeyboardInterrupt\n")
    plain = run(["script.py"], folder=tmp_path, cwd=tmp_path)
    hosted = run([*start, "script.py"], folder=tmp_path, cwd=tmp_path)
    assert hosted == plain._replace(endings=["interrupted 130"])
    assert hosted.status == -signal.SIGINT


def test_hard_exit_is_the_scripts_own(tmp_path):
    hosted = assert_unchanged([THYSELF, "hard"], folder=tmp_path)
    assert hosted.status == 11
    assert hosted.endings == []


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "selfish", "a", "-b"],
        ["-m", "selfish", "fail"],
        ["-m", "selfish.inner.worker"],
        ["-m", "know_thyself", "exception"],
        ["-m", "know_thyself", "interrupt"],
        ["-m", "know_thyself", "normal"],
        ["-m", "broken_import"],
        ["broken_import.py"],
        ["./selfish/../know_thyself.py", "exit-text"],
    ],
    ids=" ".join,
)
def test_ways_to_name_the_program(command, tmp_path):
    assert len(assert_unchanged(command, folder=tmp_path).endings) == 1


def test_directory_zip_link_and_compiled_file(tmp_path):
    source = (
        "import sys\nprint(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, sys.path[0])\n1 / 0\n"
    )
    package = tmp_path / "program"
    package.mkdir()
    write(package / "__main__.py", source)
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.writestr("__main__.py", source)
    (tmp_path / "link.py").symlink_to(package / "__main__.py")
    make = "import py_compile; py_compile.compile('program/__main__.py', 'compiled.pyc', dfile='elsewhere.py')"
    run(["-c", make], folder=tmp_path, cwd=tmp_path)
    for name in ("program", "./program/", "program.zip", "link.py", "compiled.pyc"):
        hosted = assert_unchanged([name, "x"], folder=tmp_path, cwd=tmp_path)
        assert hosted.endings == ["exception 1"]


@pytest.mark.parametrize(
    "source",
    [
        b"def f():\n",
        b"x = '\xff'\n",
        b"x = 1\n\0\n",
        b"# coding: no-such-coding\n",
        b"x = (1,\n",
        b'\xef\xbb\xbfx = "\\d"\r\nprint(x)\r\nraise ValueError(x)',
        b"# coding: latin-1\nprint(ascii('\xe4')); 1 / 0  # \xe4\n",
        b"'the doc'\nx: int = 3\nprint(__doc__, __annotations__)\n",
        b"",
    ],
    ids=range(9),
)
def test_odd_sources_print_what_python_prints(source, tmp_path):
    (tmp_path / "odd.py").write_bytes(source)
    assert_unchanged(["odd.py"], folder=tmp_path, cwd=tmp_path)


def test_working_directory_left_behind(tmp_path):
    write(
        tmp_path / "wander.py",
        "import os\nos.mkdir('below')\nos.chdir('below')\nprint(__file__)\nos.rmdir('../below')\n1 / 0\n",
    )
    assert_unchanged(["wander.py"], folder=tmp_path, cwd=tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# What is ours: frames in the middle, the early stop, SIGTERM, refusals


OURS = """
import traceback
from gradwell.probe import host

def call(function):
    return function()

code = compile("def through(function):\\n    return function()\\n", host._PACKAGE + "/probe/some_hook.py", "exec")
namespace = {}
exec(code, namespace)
through = namespace["through"]

def deep():
    raise ValueError("deep")

def cause():
    try:
        through(deep)
    except ValueError as error:
        raise KeyError("caused") from error

def both():
    try:
        through(cause)
    except KeyError:
        through(lambda: 1 / 0)

try:
    through(both)
except ZeroDivisionError as error:
    top = error
END
"""


@pytest.mark.parametrize("end", ["raise top", "raise ExceptionGroup('group', [top])"])
def test_our_frames_are_peeled_everywhere(end, tmp_path):
    if "Group" in end and sys.version_info < (3, 11):
        pytest.skip("python 3.10 has no exception groups")
    write(tmp_path / "script.py", OURS.replace("END", end))
    plain = run(["script.py"], folder=tmp_path, cwd=tmp_path)
    hosted = run(["-c", DRIVER, "script.py"], folder=tmp_path, cwd=tmp_path)
    lines = plain.err.splitlines()
    # the invented file has no source lines, so each frame of ours is one line
    expected = [line for line in lines if "some_hook.py" not in line]
    assert len(lines) - len(expected) == 4
    assert hosted.err.splitlines() == expected


def test_a_script_inside_our_package_keeps_its_frames(tmp_path):
    write(tmp_path / "script.py", "def f():\n    return 1 / 0\nf()\n")
    driver = DRIVER.replace("on_end=on_end", "on_end=on_end, ours=[os.getcwd()]")
    hosted = run(["-c", driver, "script.py"], folder=tmp_path, cwd=tmp_path)
    assert hosted.err.count("script.py") == 2


STOP = """
import atexit
from gradwell.probe.host import StopTraining
atexit.register(lambda: print("atexit"))
def hook():
    raise StopTraining
try:
    hook()
finally:
    print("finally")
    AFTER
print("not reached")
"""


@pytest.mark.parametrize("after", ["pass", "result_that_is_missing", "raise SystemExit(1)"])
def test_our_own_stop_is_quiet(after, tmp_path):
    write(tmp_path / "script.py", STOP.replace("AFTER", after))
    hosted = run(["-c", DRIVER, "script.py"], folder=tmp_path, cwd=tmp_path)
    assert hosted == Run("finally\natexit\n", "", 0, ["stopped 0"])


@pytest.mark.parametrize("after", ["raise", "pass", "raise SystemExit(3)", "1 / 0"])
def test_sigterm_runs_finally_blocks_then_kills(after, tmp_path):
    source = f"""
import os, signal, time
try:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
    except BaseException:
        {after}
finally:
    print("saved", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    write(tmp_path / "script.py", source)
    hosted = run(["-c", DRIVER, "script.py"], folder=tmp_path, cwd=tmp_path)
    assert hosted == Run("saved True\n", "", -signal.SIGTERM, ["terminated 143"])


def test_sigterm_from_outside_while_it_waits(tmp_path):
    write(tmp_path / "script.py", "import time\nprint('ready', flush=True)\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "ON_END": str(tmp_path / "endings")},
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
    assert time.monotonic() - begun < 5
    assert (tmp_path / "endings").read_text() == "terminated 143\n"


def test_caller_is_told_before_atexit_and_after_the_traceback(tmp_path):
    driver = DRIVER.replace("    with open", "    print(ending.reason, file=sys.stderr)\n    with open")
    write(tmp_path / "script.py", "import atexit, sys\natexit.register(print, 'atexit', file=sys.stderr)\n1 / 0\n")
    lines = run(["-c", driver, "script.py"], folder=tmp_path, cwd=tmp_path).err.splitlines()
    assert lines[-3:] == ["ZeroDivisionError: division by zero", "exception", "atexit"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["missing.py"], "no script can be read at 'missing.py': No such file or directory (looked in CWD); "
                         "check the path, or use -m to run a module"),
        (["empty"], "cannot run 'empty': can't find '__main__' module in 'CWD/empty'; "
                    "check the name, or give the path of a script"),
        (["-m", "no_such_module"], "cannot run 'no_such_module': No module named no_such_module; "
                                   "check the name, or give the path of a script"),
        (["-m", "script.py"], "cannot run 'script.py': Error while finding module specification for 'script.py' "
                              "(ModuleNotFoundError: __path__ attribute not found on 'script' while trying to find "
                              "'script.py'). Try using 'script' instead of 'script.py' as the module name.; "
                              "check the name, or give the path of a script"),
    ],
)  # fmt: skip
def test_nothing_to_run_is_one_clear_sentence(command, message, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "script.py", "")
    hosted = run(["-c", DRIVER, *command], folder=tmp_path, cwd=tmp_path)
    assert hosted == Run("", f"unreadable: {message}\n".replace("CWD", str(tmp_path)), 1, [])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_script_without_permission_is_refused(tmp_path):
    write(tmp_path / "script.py", "").chmod(0)
    hosted = run(["-c", DRIVER, "script.py"], folder=tmp_path, cwd=tmp_path)
    assert "cannot be read: Permission denied" in hosted.err


def test_the_host_brings_no_torch_and_no_random_state(tmp_path):
    driver = "import sys; import gradwell.probe.host; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(["-c", driver], folder=tmp_path).out == "False False\n"


@pytest.mark.parametrize(
    ("orig", "kept"),
    [
        (["python", "-m", "gradwell", "run"], ["python"]),
        (["python", "bin/gradwell", "run", "-m"], ["python"]),
        (["python", "-W", "error", "-Xdev", "-um", "gradwell"], ["python", "-W", "error", "-Xdev", "-u"]),
        (["python", "-Wignore::m", "-c", "x"], ["python", "-Wignore::m"]),
        (["python", "--check-hash-based-pycs", "always", "-OO", "x.py"],
         ["python", "--check-hash-based-pycs", "always", "-OO"]),
    ],
)  # fmt: skip
def test_interpreter_command(orig, kept):
    assert _interpreter_command(orig) == kept


def test_ending_is_a_record():
    assert pickle.loads(pickle.dumps(Ending(3, "exit"))) == Ending(3, "exit")
