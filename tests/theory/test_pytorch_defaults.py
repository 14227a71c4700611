"""What torch draws by default: the variances that the init `torch_default` and the table of named inits stand on."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

FACTS = json.loads((Path(__file__).parent / "reference_values.json").read_text())["pytorch_2_13"]


def test_variances_of_fresh_layers() -> None:
    torch.manual_seed(0)
    linear, conv, rnn = nn.Linear(600, 2000), nn.Conv2d(64, 256, 3), nn.RNN(8, 600)
    attention, embedding = nn.MultiheadAttention(400, 4), nn.Embedding(2000, 400)
    found = {
        "linear_var_times_fanin": linear.weight.var() * 600,
        "bias_var_times_fanin": linear.bias.var() * 600,
        "conv2d": conv.weight.var() * 64 * 9,
        "rnn_whh_times_hidden": rnn.weight_hh_l0.var() * 600,
        "embedding_var": embedding.weight.var(),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(FACTS[name], rel=0.05), name
    assert attention.in_proj_weight.var().item() == pytest.approx(2 / (4 * 400), rel=0.02)  # sigma_w^2 = .5


@pytest.mark.parametrize("name", FACTS["calculate_gain"])
def test_calculate_gain(name: str) -> None:
    expected = FACTS["calculate_gain"][name]
    if expected == "Unsupported":
        with pytest.raises(ValueError, match="Unsupported nonlinearity"):
            nn.init.calculate_gain(name)
    else:
        assert math.isclose(nn.init.calculate_gain(name), expected, rel_tol=1e-9)
