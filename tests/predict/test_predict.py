"""`predict`: against the reference table, against measured nets, and against the clock."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gradwell.errors import UnknownId, UsageError
from gradwell.journeys.check import measure
from gradwell.journeys.predict import REMEMBERED, Prediction, phase_diagram, predict
from gradwell.lab.nets import build
from gradwell.lab.tasks import batch, loss_fn
from gradwell.measure.profile import profile
from gradwell.records.net import NetConfig
from gradwell.shelf import shelf
from gradwell.theory.meanfield import critical_point

TABLE = json.loads((Path(__file__).parents[1] / "theory" / "reference_values.json").read_text())
KEYS = [
    "activation",
    "init",
    "depth",
    "width",
    "sigma_w2",
    "sigma_b2",
    "q_star",
    "chi",
    "depth_scale",
    "trainable_depth",
    "log10_gain",
    "log10_gain_sd",
    "log10_gain_by_layer",
    "phase",
    "verdict",
    "advice",
]
PLAIN = [name for name in TABLE["activations"] if name in shelf("gradwell.theory.activations")]


@pytest.mark.parametrize("name", PLAIN)
def test_table_of_gains(name):
    """Table A: log10 gain of 10, 50 and 100 layers at PyTorch's default, Xavier and He."""
    inits = TABLE["activations"][name]["named_inits"]
    for ours, theirs in (("torch_default", "torch_default_n64"), ("xavier", "xavier_lecun"), ("he", "he")):
        variances = {"sigma_w2": 2.0} if ours == "he" else {}  # the table's He is 2 for every activation
        for depth, expected in inits[theirs]["log10_norm_gain"].items():
            found = predict(int(depth), name, ours, width=64, **variances)
            assert found.log10_gain == pytest.approx(expected, abs=2e-6)
            assert sum(found.log10_gain_by_layer) == pytest.approx(found.log10_gain, abs=1e-9)


@pytest.mark.parametrize("row", TABLE["tanh_sb2_0p05"], ids=lambda row: f"sw2={row['sw2']}")
def test_depth_scales_of_tanh(row):
    found = predict(20, "tanh", sigma_w2=row["sw2"], sigma_b2=0.05)
    assert found.q_star == pytest.approx(row["qstar"], abs=1e-6)
    assert found.chi == pytest.approx(row["chi1"], abs=1e-6)
    if abs(found.chi - 1) > 0.01:
        assert found.depth_scale == pytest.approx(row["xi_c"], rel=1e-6)
        assert found.trainable_depth == pytest.approx(row["six_xi_c"], rel=1e-6)


MEASURED = [
    NetConfig(depth=10),
    NetConfig(depth=10, init="he"),
    NetConfig(depth=10, activation="tanh", init="lecun"),
    NetConfig(depth=10, activation="tanh"),
    NetConfig(depth=8, activation="sigmoid"),
    NetConfig(depth=10, activation="sigmoid", init="centred_sigmoid"),
    NetConfig(depth=10, activation="gelu", init="critical"),
    NetConfig(depth=10, activation="relu", norm="batch"),
    NetConfig(depth=10, activation="sigmoid", norm="layer"),
    NetConfig(depth=10, activation="silu", init="he"),
    NetConfig(depth=10, activation="elu", init="lecun"),
    NetConfig(depth=10, activation="tanh", init="orthogonal", gain=5 / 3),
    NetConfig(kind="residual", depth=10, init="he", norm="layer"),
    NetConfig(kind="residual", depth=10, init="he", shortcut=10**-0.5),
]


def _measured(config):
    """Decades between the outputs of the weight layers of the trunk, from the input to the output, mean of 4 nets."""
    totals = []
    for seed in range(4):
        net = NetConfig(
            **{
                **{f: getattr(config, f) for f in config.__struct_fields__},
                "width": 256,
                "task": "gaussian",
                "batch_size": 256,
                "seed": seed,
                "dtype": "float64",
            }
        )
        model = build(net)
        run = measure(model, batch(net), loss_fn(net))
        gains = dict(profile(run.sites, run.steps[-1]))
        place = {run.sites[i].site: g for i, g in gains.items()}
        first = place["stem"] if config.kind == "residual" else place["hidden.0"]
        totals.append(first - place["head"])
    return float(np.mean(totals))


@pytest.mark.parametrize("config", MEASURED, ids=str)
def test_profiles_of_measured_nets(config):
    """Width 256: within 0.05 decade a layer, and mostly ten times closer."""
    torch.set_num_threads(1)
    custom = {} if config.gain == 1 else {"sigma_w2": config.gain**2}
    norm = {"norm": config.norm, "batch_size": 256} if config.norm else {}
    shortcut = {"shortcut": config.shortcut} if config.kind == "residual" else {}
    found = predict(config.depth, config.activation, config.init, width=256, **custom, **norm, **shortcut)
    assert abs(_measured(config) - found.log10_gain) / config.depth < 0.05


def test_record_is_the_contract():
    found = predict(50, "tanh", "xavier", width=256)
    assert list(json.loads(found.to_json())) == KEYS
    assert list(Prediction.__struct_fields__) == KEYS
    assert json.loads(found.to_json())["depth_scale"] == "inf"
    assert len(found.log10_gain_by_layer) == 50
    assert found.phase == "critical"
    assert found.verdict == "healthy"


@pytest.mark.parametrize(
    ("config", "verdict", "phase", "advice"),
    [
        ({"depth": 20, "activation": "sigmoid"}, "fatal", "ordered", "centred_sigmoid"),
        ({"depth": 12, "activation": "relu"}, "fatal", "ordered", "'he'"),
        ({"depth": 3, "activation": "relu"}, "mild", "ordered", "'he'"),
        ({"depth": 30, "activation": "gelu", "init": "he"}, "serious", "ordered", "sigma_b2 = 0.1729"),
        ({"depth": 50, "activation": "relu", "norm": "batch", "batch_size": 32}, "fatal", "chaotic", "shortcuts"),
        ({"depth": 20, "activation": "sigmoid", "norm": "layer"}, "fatal", "ordered", "batch norm"),
        ({"depth": 24, "init": "he", "shortcut": 1.0}, "fatal", "chaotic", "1/sqrt(depth)"),
        ({"depth": 24, "init": "he", "shortcut": 1.0, "norm": "layer"}, "healthy", "critical", "Keep it"),
        ({"depth": 20, "init": "he", "dropout": 0.5}, "serious", "chaotic", "sigma_w2 = 1"),
        ({"depth": 1, "activation": "tanh", "rnn": 50}, "fatal", "ordered", "forget bias"),
        ({"depth": 10, "init": "zeros"}, "fatal", "ordered", "'he'"),
        ({"depth": 20, "activation": "softplus"}, "fatal", "ordered", "no stable critical point"),
    ],
)
def test_verdicts_and_advice(config, verdict, phase, advice):
    found = predict(**config)
    assert (found.verdict, found.phase) == (verdict, phase)
    assert advice in found.advice
    assert found.advice.count(".") >= 1
    assert verdict in str(found)


def test_width_correction():
    """Hanin: at width 64 and depth 20 the mean of ln |J|^2 is -0.802 and its variance 1.660."""
    found = predict(20, "relu", "he", width=64)
    assert found.log10_gain_sd * 2 * math.log(10) == pytest.approx(math.sqrt(1.660), abs=2e-3)
    assert found.typical_log10_gain * 2 * math.log(10) == pytest.approx(-0.802, abs=2e-3)


@pytest.mark.parametrize("activation", REMEMBERED)
def test_remembered_critical_points(activation):
    point = critical_point(activation)
    assert (point.sigma_w2, point.sigma_b2) == pytest.approx(REMEMBERED[activation], abs=1e-9)


def test_every_activation_and_init_is_predicted():
    for activation in shelf("gradwell.theory.activations"):
        for init in shelf("gradwell.theory.inits"):
            if init == "critical" and activation in ("softplus", "exp"):
                continue
            found = predict(10, activation, init)
            assert not math.isnan(found.log10_gain)
            assert "\n" not in found.advice


def test_no_torch():
    code = (
        "import sys; from gradwell.journeys.predict import predict, phase_diagram; predict(50, 'gelu', 'he')\n"
        "phase_diagram('tanh', [1.0, 2.0], [1, 10], 0.05); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_phase_diagram():
    found = phase_diagram("tanh", [1.0, 1.5, 2.5, 4.0], [1, 10, 100], 0.05)
    assert np.array(found.log10_gain).shape == (4, 3)
    assert found.critical_sigma_w2 == pytest.approx(1.760955, abs=1e-6)
    assert found.trainable_depth[2] == pytest.approx(70.77, abs=0.01)
    assert found.log10_gain[0][2] < -4 < 0 < found.log10_gain[3][2]
    single = predict(100, "tanh", sigma_w2=2.5, sigma_b2=0.05)
    assert found.log10_gain[2][2] == pytest.approx(single.log10_gain, abs=1e-9)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"depth": 0}, "depth is a number of things and was given as 0"),
        ({"depth": 5, "norm": "group"}, "'batch', 'layer' or 'rms'"),
        ({"depth": 5, "dropout": 1.0}, "0 <= p < 1"),
        ({"depth": 5, "sigma_w2": -1.0}, "variance"),
        ({"depth": 5, "norm": "batch", "batch_size": 3}, "at least 4"),
        ({"depth": 5, "rnn": 5, "norm": "layer"}, "leave out one"),
    ],
)
def test_bad_values_are_told(args, words):
    with pytest.raises(UsageError, match=words):
        predict(**args)
    with pytest.raises(UnknownId, match="relu"):
        predict(5, "rellu")
    with pytest.raises(UnknownId, match="xavier"):
        predict(5, "relu", "xavir")
