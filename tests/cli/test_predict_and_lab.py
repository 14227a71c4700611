"""`gradwell predict` and `gradwell lab run` from the command line."""

import json

import pytest

PREDICTION = {
    "activation", "init", "depth", "width", "sigma_w2", "sigma_b2", "q_star", "chi", "depth_scale", "trainable_depth",
    "log10_gain", "log10_gain_sd", "log10_gain_by_layer", "phase", "verdict", "advice",
}  # fmt: skip


def test_predict_tells_the_gain(gradwell):
    done = gradwell("predict", "--depth", "20", "--activation", "sigmoid")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("fatal: the gradient is 10^17 times smaller at the first layer")
    assert "centred_sigmoid" in done.out


def test_predict_as_json(gradwell, tmp_path):
    bare = gradwell("predict", "--depth", "50", "--activation", "tanh", "--init", "xavier", "--json")
    found = json.loads(bare.out)
    assert set(found) >= PREDICTION
    assert (found["depth"], found["activation"], found["init"]) == (50, "tanh", "xavier")
    assert len(found["log10_gain_by_layer"]) == 50
    assert sum(found["log10_gain_by_layer"]) == pytest.approx(found["log10_gain"])
    words = ["--activation", "tanh", "--init", "xavier"]
    assert json.loads(gradwell("predict", "--json", "-", "--depth", "50", *words).out) == found
    assert gradwell("predict", "--depth", "50", *words, "--json", "new/p.json").out == ""
    assert json.loads((tmp_path / "new/p.json").read_text()) == found


def test_predict_takes_the_other_settings(gradwell):
    words = ["--depth", "10", "--width", "256", "--sigma-w2", "1.76", "--sigma-b2", "0.05", "--activation", "tanh"]
    assert gradwell("predict", *words, "--dropout", "0.1").status == 0
    assert gradwell("predict", "--depth", "30", "--norm", "batch", "--batch-size", "32").status == 0
    assert gradwell("predict", "--depth", "30", "--shortcut", "1").status == 0
    assert gradwell("predict", "--depth", "2", "--activation", "tanh", "--rnn", "100").status == 0


def test_predict_refuses_what_means_nothing(gradwell):
    assert "did you mean 'sigmoid'" in gradwell("predict", "--depth", "5", "--activation", "sigmoyd").line
    assert gradwell("predict", "--depth", "0").status == 2
    assert gradwell("predict").status == 2
    (line,) = gradwell("predict", "--depth", "5", "--norm", "bunch").err.splitlines()
    assert line.startswith("gradwell: ")


def test_lab_run_writes_tables_figures_and_a_page(gradwell, tmp_path):
    done = gradwell("lab", "run", "sigmoid-chain", "--quick", "--out", "lesson")
    assert done.status == 0
    assert "0.0021640311" in done.out
    names = {path.suffix for path in (tmp_path / "lesson").iterdir()}
    assert names == {".csv", ".svg", ".png", ".html"}


def test_lab_run_refuses_what_it_does_not_know(gradwell):
    assert "did you mean 'xor-depth'" in gradwell("lab", "run", "xor-deep").line
    assert gradwell("lab", "run", "sigmoid-chain", "--depth", "3").status == 2
