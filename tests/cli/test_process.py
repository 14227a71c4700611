"""`gradwell` as a process: signals, kills, pipes, what is imported, and that a script cannot tell the difference."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gradwell as gw

from .conftest import SICK, diagnosis, lines, newest

SCRIPTS = Path(__file__).parents[1] / "scripts"
GRADWELL = [sys.executable, "-c", "from gradwell.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE = 60  # seconds that a loaded machine may need

ENDLESS = SICK.replace("range(6)", "range(10**9)").replace("print(", "if step == 5: print('running', flush=True)  #")


def start(*argv, cwd, command=GRADWELL, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT} | options
    return subprocess.Popen([*command, *argv], cwd=cwd, **pipes)


def finish(*argv, cwd, **options):
    with start(*argv, cwd=cwd, **options) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


# Signals.


def end_by(process, number):
    """Send a signal, and once more where python has swallowed it (an exception inside a finalizer is ignored)."""
    for wait in (PATIENCE / 4, PATIENCE):
        process.send_signal(number)
        try:
            return process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.communicate()


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_still_gives_a_diagnosis(tmp_path, number, reason):
    (tmp_path / "train.py").write_text(ENDLESS)
    command = GRADWELL if number == signal.SIGINT else [sys.executable, "-m", "gradwell"]
    with start("run", "train.py", cwd=tmp_path, command=command) as process:
        assert process.stdout.readline() == "running\n"
        out, err = end_by(process, number)
    assert process.returncode == -number  # as plain python dies
    assert out == ""
    assert "vanishing_gradient" in err
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    assert "gradwell/" not in err.partition("KeyboardInterrupt")[0]
    assert "Aborted" not in err
    folder = newest(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.json", "report.html", "run.jsonl"]
    assert lines(folder)[-1]["detail"]["reason"] == reason
    assert diagnosis(folder)["verdict"] not in {"healthy", "undecided"}


def test_kill_9_loses_the_step_in_flight_at_most(tmp_path, gradwell):
    (tmp_path / "train.py").write_text(ENDLESS)
    with start("run", "train.py", cwd=tmp_path) as process:
        assert process.stdout.readline() == "running\n"
        process.kill()
        process.communicate(timeout=PATIENCE)
    folder = newest(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["run.jsonl"]
    assert [step.step for step in gw.load(folder).steps][:3] == [0, 1, 2]
    assert "vanishing_gradient" in gradwell("report").err


def test_a_second_ctrl_c_ends_as_the_first(tmp_path):
    body = "import os, signal, gradwell.journeys.run as run\n"
    body += "run.diagnose = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\nraise KeyboardInterrupt\n"
    (tmp_path / "train.py").write_text(body)
    status, _, err = finish("run", "train.py", cwd=tmp_path)
    assert status == -signal.SIGINT
    assert err.splitlines()[-1].startswith("gradwell: the diagnosis was interrupted; the record is in ")
    assert err.count("Traceback") == 1


# Invisible.


@pytest.mark.parametrize("name", ["plain_mlp", "cnn_inplace_residual", "lbfgs"])
def test_a_script_prints_the_same_bits(tmp_path, name):
    script = str(SCRIPTS / f"{name}.py")
    with start(script, cwd=tmp_path, command=[sys.executable]) as plain:
        watched = finish("run", "--quiet", script, cwd=tmp_path)
        out, err = plain.communicate(timeout=PATIENCE)
    assert watched == (plain.returncode, out, err)
    assert "final loss 0x" in out
    assert diagnosis(newest(tmp_path))["verdict"] == "healthy"


def test_stderr_without_our_lines_is_the_scripts(tmp_path, gradwell):
    (tmp_path / "train.py").write_text(SICK + "import sys\nprint('own words', file=sys.stderr)\n1 / 0\n")
    plain = finish("train.py", cwd=tmp_path, command=[sys.executable])
    status, out, err = gradwell("run", "train.py")
    own = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("gradwell: "))
    own, verdict, _ = own.partition("FATAL ")
    assert verdict
    assert (status, out, own) == plain


# What is imported.

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from gradwell.cli import main
"""


def _blocked(*argv):
    return [sys.executable, "-c", f"{BLOCKED}main({list(argv)!r})"]


def test_report_needs_no_torch(recorded, tmp_path):
    status, out, err = finish(
        cwd=tmp_path, command=_blocked("report", "--html", "r.html", "--csv", "t.csv", str(recorded))
    )
    assert (status in {0, 1}, out) == (True, "")
    assert "vanishing_gradient" in err
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert (tmp_path / "t.csv").is_file()


def test_import_list_and_explain_need_no_torch(tmp_path):
    every = "; ".join(
        f"command({argv!r})"
        for argv in [["list", shelf] for shelf in ("symptoms", "causes", "remedies", "activations", "inits")]
        + [["explain", "vanishing_gradient"], ["explain", "gelu"], ["explain", "orthogonal"], ["run", "--help"]]
    )
    body = f"{BLOCKED}import gradwell\ngradwell.load, gradwell.Run, gradwell.Diagnosis, gradwell.GradwellError\n"
    body += (
        "def command(argv):\n    try:\n        main(argv)\n    except SystemExit as end:\n        assert not end.code\n"
    )
    body += f"{every}\nassert 'torch' not in sys.modules\n"
    status, out, err = finish(cwd=tmp_path, command=[sys.executable, "-c", body])
    assert (status, err) == (0, "")
    assert "vanishing_gradient" in out


def test_import_gradwell_is_cheap(tmp_path):
    body = "import sys, gradwell; print([m for m in ('torch', 'numpy', 'pandas', 'typer') if m in sys.modules])"
    assert finish(cwd=tmp_path, command=[sys.executable, "-c", body])[1] == "[]\n"


# Pipes.


def test_a_reader_that_leaves_early(tmp_path):
    with start("list", "activations", cwd=tmp_path, command=[sys.executable, "-m", "gradwell"]) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_stdout_is_full(tmp_path):
    with Path("/dev/full").open("w") as full:
        status, _, err = finish("list", "symptoms", cwd=tmp_path, stdout=full)
    assert (status, err) == (2, "gradwell: Cannot write to stdout: No space left on device.\n")


def test_stdout_in_ascii(tmp_path, recorded):
    ascii_only = {"env": {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, "command": [sys.executable, "-m", "gradwell"]}
    assert finish("explain", "input_scale", cwd=tmp_path, **ascii_only)[0] == 0
    status, out, err = finish("report", "--json", "-", str(recorded), cwd=tmp_path, **ascii_only)
    assert status in {0, 1}
    assert (out + err).isascii()
    assert "backslash" not in err


def test_stdout_is_closed(tmp_path):
    command = ["sh", "-c", f"exec {sys.executable} -m gradwell list symptoms >&-"]
    assert finish(cwd=tmp_path, command=command) == (0, "", "")


def test_ranks_that_start_together_get_folders_of_their_own(tmp_path):
    body = "from gradwell.journeys.report import new_folder\nprint(new_folder('train.py', say=print))"
    command = [sys.executable, "-c", body]
    ranks = [start(cwd=tmp_path, command=command) for _ in range(3)]
    folders = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    assert len(set(folders)) == 3, folders
