"""Bad usage: one clear line on stderr, status 2, nothing begun."""

import pytest

COMMANDS = {"run": "train.py", "check": "model.py:setup", "report": "."}

BAD = {
    "fail-on": (["--fail-on", "bad"], ["--fail-on takes mild, serious or fatal", "'bad'"]),
    "ignore": (["--ignore", "vanishing_gradients"], ["'vanishing_gradients'", "did you mean 'vanishing_gradient'"]),
    "ignore-at": (["--ignore", "xyzzy:fc1"], ["'xyzzy'", "gradwell list symptoms"]),
    "set-shape": (["--set", "vanishing_gradient"], ["ID.name=value", "'vanishing_gradient'"]),
    "set-dot": (["--set", "mild=3"], ["ID.name=value"]),
    "set-id": (["--set", "vanishing.mild=3"], ["'vanishing'", "did you mean"]),
    "set-name": (["--set", "vanishing_gradient.tiny=3"], ["no threshold 'tiny'", "its thresholds are"]),
    "set-number": (["--set", "vanishing_gradient.mild=three"], ["vanishing_gradient.mild", "'three'"]),
    "set-nan": (["--set", "vanishing_gradient.mild=nan"], ["vanishing_gradient.mild", "number"]),
    "option": (["--colour"], ["--colour", "--help"]),
    "value": (["--json"], ["--json", "argument"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", BAD)
def test_bad_option(gradwell, tmp_path, command, case):
    options, said = BAD[case]
    line = gradwell(command, *options, *([] if case == "value" else [COMMANDS[command]])).line
    assert all(word in line for word in said), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["run"], ["check"], ["explain"], ["list"], ["fly"], ["run", "--steps", "0", "x.py"],
                                  ["run", "--steps", "many", "x.py"]], ids=" ".join)  # fmt: skip
def test_bad_command(gradwell, argv):
    line = gradwell(*argv).line
    assert "--help`" in line


def test_nothing_at_all_shows_the_help(gradwell):
    done = gradwell()
    assert done.status == 2
    assert "Usage: gradwell" in done.err + done.out
    assert "check" in done.err + done.out


@pytest.mark.parametrize(
    "command", [[], ["run"], ["check"], ["treat"], ["report"], ["demo"], ["list"], ["explain"]], ids=str
)
def test_help(gradwell, command):
    done = gradwell(*command, "--help")
    assert done.status == 0
    assert done.err == ""
    assert "Usage: gradwell" in done.out


@pytest.mark.parametrize("command", ["run", "check", "report"])
def test_help_names_every_option_of_the_contract(gradwell, command):
    out = gradwell(command, "--help").out
    options = ["--json", "--html", "--out", "--fail-on", "--ignore", "--set", "--quiet"]
    options += {"run": ["--steps", "-m"], "report": ["--csv"]}.get(command, [])
    assert [option for option in options if option not in out] == []
