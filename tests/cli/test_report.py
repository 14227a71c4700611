"""`gradwell report`: from a run folder, whole, torn, damaged, or not ours."""

import csv
import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest

import gradwell as gw
from gradwell.records.numbers import from_json

from .conftest import diagnosis, lines


@pytest.fixture
def copy(recorded, tmp_path):
    """A run folder to spoil."""
    return shutil.copytree(recorded, tmp_path / "runs/20200101-000000-train")


def test_text_and_status(gradwell, recorded):
    done = gradwell("report", str(recorded))
    verdict = diagnosis(recorded)["verdict"]
    assert done.status == int(verdict in {"serious", "fatal"})
    assert "vanishing_gradient" in done.err.splitlines()[0]
    assert done.out == ""
    assert gradwell("report", "--fail-on", "mild", str(recorded)).status == 1


def test_a_file_may_be_named(gradwell, recorded):
    assert gradwell("report", str(recorded / "run.jsonl")).err == gradwell("report", str(recorded)).err


def test_the_newest_is_taken(gradwell, copy, tmp_path):
    other = shutil.copytree(copy, tmp_path / "runs/20190101-000000-other")
    text = (other / "run.jsonl").read_text().replace('"argv":["train.py"]', '"argv":["other.py"]')
    (other / "run.jsonl").write_text(text)
    os.utime(copy / "run.jsonl", (1, 1))
    assert "other.py" in gradwell("report").err
    os.utime(other / "run.jsonl", (0, 0))
    assert "train.py" in gradwell("report").err


def test_json_to_stdout(gradwell, recorded):
    done = gradwell("report", "--json", "-", str(recorded))
    assert json.loads(done.out)["findings"] == diagnosis(recorded)["findings"]
    assert "vanishing_gradient" in done.err


def test_files(gradwell, recorded, tmp_path):
    options = ["--html", "r.html", "--csv", "t.csv", "--json", "d.json", "--out", "copy"]
    assert gradwell("report", "--quiet", *options, str(recorded)).err == ""
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    profile = diagnosis(recorded)["profile"]
    assert [row["site"] for row in rows] == [row["site"] for row in profile]
    assert [float(row["log10_gain"]) for row in rows] == pytest.approx([from_json(r["log10_gain"]) for r in profile])
    assert (tmp_path / "r.html").stat().st_size > 1000
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["diagnosis.json", "report.html", "run.jsonl"]
    assert gradwell("report", "copy").err == gradwell("report", str(recorded)).err


def test_nothing_is_written_unasked(gradwell, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    gradwell("report", str(copy))
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_out_may_be_the_runs_own_folder(gradwell, copy):
    text = (copy / "run.jsonl").read_bytes()
    (copy / "report.html").unlink()
    gradwell("report", "--out", str(copy), str(copy))
    assert (copy / "run.jsonl").read_bytes() == text
    assert (copy / "report.html").is_file()


def test_ignore_and_set(gradwell, recorded):
    done = gradwell("report", "--ignore", "vanishing_gradient", "--ignore", "*_*", str(recorded))
    assert done.status == 0
    assert "vanishing_gradient" not in done.err.splitlines()[0]


# A run that is still being written, or was cut off.


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_an_unfinished_run(gradwell, copy, keep):
    whole = (copy / "run.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "run.jsonl").write_bytes(b"".join(whole[:keep]))
    done = gradwell("report")
    assert done.status in {0, 1}
    known = sum(b'"event"' not in line for line in whole[1:keep])
    assert len(gw.load(copy).steps) == known
    assert ("UNDECIDED" in done.err) == (known == 0)


def test_every_torn_end_is_ignored(copy):
    file = copy / "run.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    head, torn = b"".join(whole[:3]), whole[3]
    known = sum(b'"event"' not in line for line in whole[1:3])
    for cut in (1, 2, len(torn) // 2, len(torn) - 2, len(torn) - 1):
        file.write_bytes(head + torn[:cut])
        assert len(gw.load(copy).steps) == known


def test_nonfinite_numbers_travel_as_words(copy):
    file = copy / "run.jsonl"
    header, *rest = file.read_text().splitlines()
    step = next(line for line in rest if '"event"' not in line)
    changed = json.loads(step) | {"loss": "nan", "grad_norm": "inf"}
    changed["delta_norm"][0] = "-inf"
    changed["lags"] = {"rnn": [0.0, "-inf"]}
    file.write_text(f"{header}\n{json.dumps(changed)}\n")
    (read,) = gw.load(copy).steps
    assert (str(read.loss), str(read.grad_norm), str(read.sites["delta_norm"][0])) == ("nan", "inf", "-inf")
    assert read.lags == {"rnn": [0.0, -math.inf]}


def test_what_later_versions_add_is_passed_over(gradwell, copy):
    file = copy / "run.jsonl"
    header, step, *rest = file.read_text().splitlines()
    header = json.dumps(json.loads(header) | {"galaxy": {"a": 1}})
    step = json.dumps(json.loads(step) | {"mood": "good", "sharpness": [1.0, "nan", None]})
    file.write_text("\n".join([header, step, *rest, '{"event":"eclipse","step":9,"moon":"new"}', ""]))
    assert gradwell("report").status in {0, 1}
    assert len(gw.load(copy).steps) == len([line for line in lines(copy)[1:] if "event" not in line])


# What cannot be read.


def test_no_runs(gradwell):
    assert "No run under runs/" in gradwell("report").line
    assert "gradwell run" in gradwell("report").line


def test_no_such_folder(gradwell):
    assert gradwell("report", "nowhere").line == (
        "No run at nowhere: there is no nowhere; name a folder written by `gradwell run`."
    )


def test_a_folder_without_a_run(gradwell, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "there is no run.jsonl" in gradwell("report", "photos").line


def test_run_jsonl_is_a_folder(gradwell, tmp_path):
    (tmp_path / "odd/run.jsonl").mkdir(parents=True)
    assert "Cannot read odd/run.jsonl: Is a directory" in gradwell("report", "odd").line


def test_a_name_that_is_too_long(gradwell):
    assert "Cannot read" in gradwell("report", "x" * 5000).line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(gradwell, copy):
    (copy / "run.jsonl").chmod(0)
    assert "Permission denied" in gradwell("report").line


NOT_OURS = {
    "empty": (b"", "is still empty"),
    "text": (b"hello\n", "line 1 is not a header"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe\n", "line 1 is not a header"),
    "not-utf8": (b'{"tool": "\xff\xfe"}\n', "line 1 is not a header"),
    "other": (b'{"loss": 1.0}\n{"loss": 0.5}\n', "line 1 is not a header"),
    "list": (b"[1, 2]\n", "line 1 is not a header"),
    "torn-header": (b'{"schema":1,"tool":"gradw', "line 1 is not a header"),
    "newer": (b'{"schema":99,"tool":"gradwell 9"}\n', "schema 99"),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_not_ours(gradwell, tmp_path, case):
    content, said = NOT_OURS[case]
    (tmp_path / "run.jsonl").write_bytes(content)
    assert said in gradwell("report", "run.jsonl").line


DAMAGED = [
    b"garbage", b'{"step": 1, "loss"', b"5", b"null", b"[1]", b'"text"', b"\x00\x00", b"\xff\xfe", b"",
    b'{"step": "two"}', b'{"step": 3, "act_rms": ["wide"]}', b'{"step": 3, "act_rms": [[1]]}', b'{"new_site": 3}',
    b'{"event": "x"}', b'{"event": 3, "step": 1}', b'{"new_param": {}}', b'{"loss": 1.0}',
    b'{"step": 1, "lags": 3}', b'{"step": 1, "sites": 3}',
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED, ids=repr)
def test_a_damaged_line_is_named(gradwell, copy, line):
    whole = (copy / "run.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "run.jsonl").write_bytes(b"".join([*whole[:2], line + b"\n", *whole[2:]]))
    said = gradwell("report").line
    assert "run.jsonl, line 3 is damaged (" in said
    assert "remove that line" in said


# What cannot be written.


@pytest.mark.parametrize("option", ["--json", "--html", "--csv"])
def test_cannot_write(gradwell, recorded, tmp_path, option):
    (tmp_path / "d").mkdir()
    done = gradwell("report", option, "d", str(recorded))
    assert done.status == 2
    assert "vanishing_gradient" in done.err
    assert done.err.startswith(
        f"gradwell: Cannot write {tmp_path}/d: Is a directory; name a place that can be written.\n"
    )


def test_html_on_a_full_disk(gradwell, recorded, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    done = gradwell("report", "--html", "r.html", str(recorded))
    assert done.status == 2
    assert "r.html: No space left on device; name a place that can be written." in done.err


@pytest.mark.parametrize(("step", "number"), [("write_bytes", errno.EACCES), ("replace", errno.EBUSY)])
def test_a_file_that_may_be_written_in_a_folder_that_may_not(gradwell, recorded, tmp_path, monkeypatch, step, number):
    """A file that is mounted by itself, or in somebody else's folder: nothing can be put beside it or in its place."""
    (tmp_path / "r.json").write_text("old")
    original = getattr(Path, step)

    def refused(path, *args):
        if path.name.endswith(".part"):
            raise OSError(number, os.strerror(number))
        return original(path, *args)

    monkeypatch.setattr(Path, step, refused)
    done = gradwell("report", "--json", "r.json", str(recorded))
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1
    assert done.err.count("Cannot write") == 0
    done = gradwell("report", "--json", "new.json", str(recorded))
    assert f"new.json: {os.strerror(number)}; name a place that can be written." in done.err
    assert sorted(p.name for p in tmp_path.glob("*.part")) == []


def test_out_cannot_be_made(gradwell, recorded, tmp_path):
    (tmp_path / "taken").write_text("")
    done = gradwell("report", "--out", "taken", str(recorded))
    assert done.status == 2
    assert done.err == "gradwell: Cannot make the folder taken: File exists; name another with --out.\n"
