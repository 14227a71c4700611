"""The shelves against torch itself: values, slopes by autograd, node names, and the code to paste."""

import numpy as np
import pytest

from gradwell.shelf import shelf
from gradwell.theory.inits import Variances

torch = pytest.importorskip("torch")
nn = torch.nn

ACTIVATIONS = shelf("gradwell.theory.activations")
INITS = shelf("gradwell.theory.inits")


def forward(code, x):
    expression = eval(code, {"nn": nn, "torch": torch, "x": x})
    return expression(x) if callable(expression) else expression


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "maxout"])
def test_value_and_slope(name):
    entry = ACTIVATIONS[name]
    x = torch.cat([torch.linspace(-12, 12, 201), torch.tensor(entry.fact("KINKS"))[:2]]).double()
    x = x[x < 50].requires_grad_()
    value = forward(entry.fact("CODE"), x) if name != "prelu" else nn.PReLU().double()(x)
    value.sum().backward()
    np.testing.assert_allclose(value.detach().numpy(), entry(x.detach().numpy()), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(x.grad.numpy(), entry.fact("slope")(x.detach().numpy()), rtol=1e-6, atol=1e-7)


def test_maxout():
    x = torch.randn(3, 8)
    np.testing.assert_array_equal(
        forward(ACTIVATIONS["maxout"].fact("CODE"), x).numpy(), ACTIVATIONS["maxout"](x.reshape(3, 4, 2).numpy())
    )


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if ACTIVATIONS[n].fact("AUTOGRAD")])
def test_autograd_node(name):
    entry = ACTIVATIONS[name]
    node = type(forward(entry.fact("CODE"), torch.randn(3, requires_grad=True)).grad_fn).__name__
    assert node in entry.fact("AUTOGRAD")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torch_names_exist(name):
    for torch_name in ACTIVATIONS[name].fact("TORCH"):
        homes = (nn, nn.functional, torch)
        assert any(hasattr(home, torch_name) for home in homes), torch_name


DRAWN = [n for n in INITS if n not in ("lsuv", "delta_orthogonal")]


@pytest.mark.parametrize("name", DRAWN)
def test_code_draws_what_the_function_says(name):
    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    exec(INITS[name].fact("CODE"), {"nn": nn, "torch": torch, "layer": layer})
    expected = INITS[name](400, 300)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert 400 * float(weight.square().mean()) == pytest.approx(expected.sigma_w2, rel=0.02)
    if expected.centred:
        assert torch.allclose(bias, -0.5 * weight.sum(1))
    else:
        assert float(bias.square().mean()) == pytest.approx(expected.sigma_b2, rel=0.25, abs=1e-12)


def test_delta_orthogonal_code():
    layer = nn.Conv2d(8, 16, 3)
    exec(INITS["delta_orthogonal"].fact("CODE"), {"nn": nn, "torch": torch, "layer": layer})
    centre = layer.weight.detach()[:, :, 1, 1]
    assert torch.allclose(centre.T @ centre, torch.eye(8), atol=1e-5)
    assert 8 * float(centre.square().mean()) == pytest.approx(INITS["delta_orthogonal"](8, 16).sigma_w2, rel=1e-5)


def test_lsuv_code_reaches_its_fixed_point():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(200, 200), nn.ReLU())])
    exec(INITS["lsuv"].fact("CODE"), {"nn": nn, "torch": torch, "model": model, "x": torch.randn(256, 200)})
    last = model[8].weight.detach()
    # the tolerance of the algorithm is 0.1 on the std; the mean over units of the outputs is not exactly 0
    assert 200 * float(last.square().mean()) == pytest.approx(INITS["lsuv"](200, 200).sigma_w2, rel=0.3)
    assert INITS["lsuv"](200, 200) == Variances(pytest.approx(2.0))
