"""Every experiment in its quick form: its page, its pictures, its tables, and the claim it makes."""

import csv
import io
import math

import pytest
import torch

from gradwell.errors import UnknownId, UsageError
from gradwell.lab.experiment import Ask, Outcome, experiments, find, page, run_experiment
from gradwell.report import figures as drawing
from gradwell.shelf import shelf

HEADINGS = {"What you see", "Why", "Formula", "Source"}
SHELF = shelf("gradwell.lab.experiments")
ISSUE = {
    "xor-depth",
    "xor-residual",
    "xor-cures",
    "linear-is-not-enough",
    "clipping",
    "explosion",
    "sigmoid-chain",
    "insurance",
    "random-init",
    "uniform-vs-normal",
    "activations",
    "dying-relu",
    "normalization",
    "deeper-vs-shallower",
    "credit-assignment",
    "three-signs",
    "rnn-jacobian",
    "adding",
    "temporal-order",
    "optimizers",
    "regularization",
    "claims",
}


def close(value, expected, tol):
    return math.isclose(value, expected, abs_tol=tol)


def xor_depth(f, o):
    assert f["parameters"] == 217
    assert "Total params: 217" in o.lines
    assert f["stuck"] == f["seeds"]
    assert close(f["loss"], 0.5, 0.01)
    assert close(f["gain"], f["predicted_gain"], 0.05)
    assert 8 < f["first_to_last"] < 11
    assert f["learnt_first"] >= 0.7
    assert any("0 xor 1" in line for line in o.lines)


def xor_residual(f, o):
    assert f["plain_stuck"] == f["seeds"]
    assert f["learnt"] >= 0.4
    assert f["two_learnt"] >= 0.4
    assert f["spread_plain"] > 6
    assert f["spread_residual"] < 1
    assert f["start_residual"] < f["start_plain"]
    assert o.tables[1].rows[0][4] == pytest.approx(1.0, abs=1e-3)


def xor_cures(f, o):
    for sick in ("as in the lesson", "PyTorch's default init", "ReLU alone", "SGD .1", "RMSprop", "sign update"):
        assert f[f"learnt: {sick}"] == 0
    for well in ("tanh + Xavier", "ELU + Xavier", "centred sigmoid"):
        assert f[f"learnt: {well}"] >= 0.8
    assert f["learnt: LeakyReLU + He"] > f["learnt: ReLU + He"]
    assert f["learnt: batch norm, batch of 4"] >= 0.8


def linear_is_not_enough(f, o):
    assert close(f["least_squares"], 0.5, 1e-12)
    assert f["linear_least"] > 0.499
    assert f["tanh"] < 1e-3
    assert f["difference"] < 1e-13


def sigmoid_chain(f, o):
    assert close(f["product"], 0.0021640311, 1e-10)
    assert close(f["autograd"], 0.0021640311, 1e-10)
    assert f["bound"] == 0.00390625
    assert close(f["slope_at_10"], 4.539581e-05, 1e-11)


def random_init(f, o):
    assert f["worst"] < 0.4
    assert f["relu: zeros"] == -math.inf
    assert f["relu: normal .01"] < -10
    assert f["tanh: Xavier normal: loss"] < 1
    assert math.isnan(f["relu: normal 1: loss"])


def activations(f, o):
    assert close(f["sigmoid slope at 10"], 4.539581e-05, 1e-11)
    assert f["identity error"] < 1e-14
    assert f["one sign: sigmoid"] == f["one sign: relu"] == 1
    assert close(f["one sign: tanh"], f["one sign predicted: tanh"], 0.04)
    assert f["leaky error"] < 0.4


def clipping(f, o):
    assert close(f["explodes: norm .25: cosine"], 1, 1e-6)
    assert f["explodes: element .01: cosine"] < 0.9
    assert math.isnan(f["explodes: none: loss"])
    assert math.isfinite(f["explodes: norm .25: loss"])
    assert close(f["vanishes: norm .25: ratio"], f["vanishes: norm .25: before"], 1e-6)
    assert f["vanishes: norm .25: ratio"] < -6
    assert f["vanishes: sign: loss"] > 2.2


def explosion(f, o):
    assert f["worst"] < 0.5
    assert close(f["0.9^50"], 5.15378e-3, 1e-7)
    assert close(f["1.1^50"], 117.3909, 1e-3)
    assert f["sums"] < 0.05
    assert f["named"] == 1
    assert "step" in o.lines[0]


def rnn_jacobian(f, o):
    assert close(f["linear RNN"], f["predicted: linear RNN"], 1.0)
    assert close(f["tanh RNN"], f["predicted: tanh RNN"], 2.0)
    assert f["quiet error"] < 1e-9
    assert f["LSTM, forget bias 0"] < f["LSTM, forget bias 1"] < f["LSTM, chrono"]
    assert f["near: tanh RNN"] > 0.9
    assert f["near: LSTM, forget bias 5"] < 0.2


def insurance(f, o):
    assert close(f["w8"], f["autograd"], 1e-12)
    assert f["accuracy"] > 0.9
    assert any("= 0.0015" in line and "3.0e-07" in line for line in o.lines)


def uniform_vs_normal(f, o):
    assert f["apart"] < 0.02
    assert f["worst"] < 0.05


def normalization(f, o):
    assert f["worst"] < 0.03
    assert f["sigmoid, batch norm: loss"] < 1.5
    assert f["sigmoid, layer norm: loss"] > 2.2
    assert f["sigmoid, layer norm"] < -7


def deeper_vs_shallower(f, o):
    assert f["plain deep"] > 1.5
    assert f["plain shallow"] < 0.8
    assert f["residual deep"] < 0.5
    assert f["highway deep"] < 1.2
    assert f["same"] == 0
    assert close(f["mean path"], f["predicted path"], 0.5)


def three_signs(f, o):
    assert f["vanishing early"] < -1.5
    assert f["vanishing slope"] > -0.05 > f["healthy slope"]
    assert not f["exploding loss"] < 5
    assert f["healthy loss"] < 2


def dying_relu(f, o):
    assert f["dead gradient"] == 0
    assert f["rate 2"] > f["rate 0.5"] > f["rate 0.01"]
    assert f["bias -4"] > 0.9
    assert f["relu after"] >= 0.5
    assert max(f[f"{n} after"] for n in ("leaky_relu", "prelu", "elu")) < 0.2
    assert f["off error"] < 0.02


def credit_assignment(f, o):
    assert f["sick slope"] > 0.5
    assert abs(f["healthy slope"]) < 0.2
    assert f["worst slope"] < 0.15
    assert f["auxiliary"] > 1
    assert abs(f["sick: top half"] - f["sick: all"]) < 0.05
    assert f["healthy: top half"] - f["healthy: all"] > 0.05


def claims(f, o):
    assert close(f["clipped"], 1e-9, 1e-15)
    assert f["relu"] > f["tanh"] + 2
    assert f["typical"] == 0.125
    assert f["weights of 1"] > 10
    assert f["smallest"] < -0.999 < 0.999 < f["largest"]
    assert f["slope small"] > 0.99
    assert f["worst"] < 0.5


def adding(f, o):
    assert f["LSTM"] < 0.06
    assert f["tanh RNN"] > 0.1


def temporal_order(f, o):
    assert f["LSTM"] > 0.9
    assert f["tanh RNN"] < 0.7


def optimizers(f, o):
    assert f["vanishes relu: SGD"] > 2.25
    assert min(f["vanishes relu: RMSprop"], f["vanishes relu: AdaGrad"]) < 2
    assert f["vanishes sigmoid: Adam"] > 2.2
    assert f["healthy relu: Adam"] < 1


def regularization(f, o):
    assert f["worst"] < 0.05
    assert f["0.5 He, sigma_w2 = 2"] > 1
    assert abs(f["0.5 sigma_w2 = 2p"]) < 0.3
    assert f["wd 0.1 critical (He)"] < 1.7
    assert f["wd 0 critical (He)"] > 1.9
    assert f["wd 0.1 free"] < 1e-6


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", list(SHELF))
def test_quick_form(name):
    entry = SHELF[name]
    state = torch.get_rng_state()
    found = entry(Ask(quick=True))
    assert isinstance(found, Outcome)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"
    assert found.tables
    assert found.figures
    assert found.lines
    globals()[name](found.facts, found)
    for table in found.tables:
        rows = list(csv.reader(io.StringIO(table.to_csv())))
        assert rows[0] == table.columns
        assert all(len(row) == len(table.columns) for row in rows)
    text = page(entry, found)
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert text.count("<svg") == len(found.figures)
    for heading in HEADINGS:
        assert f"<h2>{heading}</h2>" in text


def test_the_issue_names_every_experiment():
    assert {name for name, _ in experiments()} == ISSUE
    assert all(title.endswith((".", "not.")) and len(title) < 140 for _, title in experiments())
    assert all(set(entry.page.blocks) == HEADINGS for entry in SHELF.values())
    assert all(set(entry.fact("OPTIONS", ())) <= {"depth", "seeds", "epochs"} for entry in SHELF.values())


def test_run_writes_what_it_says(tmp_path):
    said = []
    run_experiment("sigmoid-chain", quick=True, out=tmp_path / "out", html=tmp_path / "page.html", say=said.append)
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert names == {".csv", ".svg", ".png", ".html"}
    assert (tmp_path / "page.html").read_text() == (tmp_path / "out" / "sigmoid-chain.html").read_text()
    assert any("0.0021640311" in text for text in said)
    assert sum("wrote" in text for text in said) == len(list((tmp_path / "out").iterdir())) + 1


def test_one_depth_and_a_few_epochs(tmp_path):
    found = run_experiment("xor_depth", depth=2, seeds=3, epochs=50, say=lambda _: None)
    assert found.tables[0].rows[0][5] == 3
    assert "Total params: 57" in found.lines


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("xor-dept", {}, UnknownId, "xor-depth"),
        ("insurance", {"depth": 3}, UsageError, "has no --depth; it takes --epochs"),
        ("sigmoid-chain", {"seeds": 3}, UsageError, "none of --depth"),
        ("xor-depth", {"depth": 0}, UsageError, "--depth is a number of things and was given as 0"),
    ],
)
def test_messages(name, options, error, words):
    with pytest.raises(error, match=words):
        run_experiment(name, quick=True, say=lambda _: None, **options)


def test_find_reads_dashes_and_underscores():
    assert find("xor-depth") is find("xor_depth")


def test_figures_mark_zero_and_what_is_not_finite():
    from gradwell.report.lessons import Line, lines

    spec = lines([Line("a", [1, 2, 3], [-math.inf, 0.0, math.nan])], title="t", x="x", y="y", said="s")
    svg = drawing.to_svg(spec)
    assert "exactly 0" in svg
    assert "not finite" in svg
    domain = lines([Line("a", [1, 2], [0.0, -0.4])], title="t", x="x", y="y", said="s")["layer"][0]["encoding"]["y"]
    low, high = domain["scale"]["domain"]
    assert high - low >= 6
