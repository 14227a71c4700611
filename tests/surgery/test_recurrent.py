"""Recurrent cures: open gates, weights that keep lengths, cut histories, and the penalty of Pascanu et al."""

import math

import pytest
import torch
from torch import nn

import gradwell as gw
from gradwell.errors import Refused
from gradwell.shelf import shelf
from gradwell.surgery.loop import Loop, losses_of
from gradwell.surgery.setup import forked
from gradwell.surgery.terms import TimeGain

B, T, N, H = 4, 12, 3, 10


class Reader(nn.Module):
    def __init__(self, kind=nn.RNN, read="last", **settings):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(N, H, **{"batch_first": True, **settings})
        self.head = nn.Linear(H * (2 if settings.get("bidirectional") else 1), 2)
        self.read = read

    def forward(self, x):
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        out, state = self.rnn(x)
        out = out if self.rnn.batch_first else out.transpose(0, 1)
        if self.read == "state":
            return self.head(state[-1])
        return self.head(out if self.read == "all" else out[:, -1])


class Stepper(nn.Module):
    def __init__(self, like):
        super().__init__()
        self.cell, self.head = nn.RNNCell(N, H), like.head
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(self.cell, name).data.copy_(getattr(like.rnn, f"{name}_l0").data)

    def forward(self, x):
        state = x.new_zeros(len(x), H)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


def square(model, batch):
    return model(batch).square().sum(-1).mean()


X = torch.randn(B, T, N, generator=torch.Generator().manual_seed(2))


def setup(model):
    return gw.TrainSetup(model, lambda params: torch.optim.SGD(params, lr=0.1), square, lambda seed: iter([X]))


def changed(model, remedy, **settings):
    arm = setup(model).copy()
    with forked(0):
        shelf("gradwell.remedies")[remedy].fact("apply")(arm, **settings)
    return arm


def refusal(model, remedy, **settings):
    with pytest.raises(Refused) as told:
        changed(model, remedy, **settings)
    return str(told.value)


# gates


@pytest.mark.parametrize(("to", "kind", "gates"), [("lstm", nn.LSTM, 4), ("gru", nn.GRU, 3)])
def test_a_plain_rnn_becomes_a_gated_one_with_its_names(to, kind, gates):
    model = Reader(num_layers=2, dropout=0.0)
    arm = changed(model, "gate_recurrence", to=to, forget_bias=2.0)
    rnn = arm.model.rnn
    assert isinstance(rnn, kind)
    assert list(arm.model.state_dict()) == list(model.state_dict())
    assert rnn.weight_hh_l1.shape == (gates * H, H)
    reference = kind(N, H, num_layers=2, batch_first=True)
    reference.load_state_dict(rnn.state_dict())
    torch.testing.assert_close(arm.model(X), arm.model.head(reference(X)[0][:, -1]))
    for layer in (0, 1):
        total = getattr(rnn, f"bias_ih_l{layer}") + getattr(rnn, f"bias_hh_l{layer}")
        assert (total[H : 2 * H] == 2).all()
        assert not (total[:H] == 2).any()


def test_the_cell_state_keeps_what_the_forget_gate_says():
    """With forget bias b the gradient along the cell is sigma(b) a step: .88 at 2, against .5 at 0."""
    for bias in (0.0, 2.0):
        arm = changed(Reader(nn.LSTM), "gate_recurrence", forget_bias=bias)
        rnn = arm.model.rnn
        with torch.no_grad():
            for name, p in rnn.named_parameters():
                if name.startswith("weight"):
                    p.zero_()
        c = torch.ones(1, 1, H, requires_grad=True)
        _, (_, last) = rnn(X[:1], (torch.zeros(1, 1, H), c))
        last.sum().backward()
        want = torch.sigmoid(torch.tensor(bias)).item() ** T
        torch.testing.assert_close(c.grad, torch.full((1, 1, H), want), rtol=1e-4, atol=0)


def test_chrono_draws_memories_between_one_and_t():
    model = Reader(nn.LSTM)
    model.rnn = nn.LSTM(N, 4000, batch_first=True)
    model.head = nn.Linear(4000, 2)
    arm = changed(model, "gate_recurrence", chrono=200)
    bias = (arm.model.rnn.bias_ih_l0 + arm.model.rnn.bias_hh_l0).detach().double()
    enter, forget = bias[:4000], bias[4000:8000]
    torch.testing.assert_close(enter, -forget)
    spans = forget.exp().sort().values  # U(1, T - 1)
    uniform = 1 + 198 * (torch.arange(4000) + 0.5) / 4000
    assert (spans - uniform).abs().max() < 198 * 1.7 / math.sqrt(4000)  # Kolmogorov-Smirnov, 1 %
    gru = changed(Reader(nn.GRU), "gate_recurrence", chrono=200).model.rnn
    assert (gru.bias_ih_l0[H : 2 * H] > 0).all()
    assert not gru.bias_hh_l0[H : 2 * H].any()


def test_where_no_gate_can_go():
    assert "no recurrent layer" in refusal(nn.Linear(N, 2), "gate_recurrence")
    assert "take the GRU" in refusal(Stepper(Reader()), "gate_recurrence", to="lstm")
    assert "no biases" in refusal(Reader(nn.LSTM, bias=False), "gate_recurrence")

    class Handing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(N, H, batch_first=True)

        def forward(self, x):
            _, state = self.rnn(x)
            return self.rnn(x, state)[0]

    arm = changed(Handing(), "gate_recurrence", to="lstm")
    with pytest.raises(Refused, match="an LSTM in its place would lose its cell"):
        Loop(arm).run(1)
    Loop(changed(Handing(), "gate_recurrence", to="gru")).run(1)


# weights that keep lengths


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_orthogonal_recurrence_gate_by_gate(kind):
    rnn = changed(Reader(kind, num_layers=2), "orthogonal_recurrence", gain=0.9).model.rnn
    for name in ("weight_hh_l0", "weight_hh_l1"):
        for gate in getattr(rnn, name).split(H):
            torch.testing.assert_close(gate @ gate.T, 0.81 * torch.eye(H), atol=1e-5, rtol=0)


def test_an_irnn_keeps_its_state():
    model = changed(Reader(), "orthogonal_recurrence", start="identity").model
    state = torch.rand(1, B, H)
    _, last = model.rnn(torch.zeros(B, 50, N), state)
    torch.testing.assert_close(last, state)
    assert model.rnn.weight_ih_l0.std().item() == pytest.approx(0.001, rel=0.5)
    assert "for plain RNNs" in refusal(Reader(nn.LSTM), "orthogonal_recurrence", start="identity")
    assert "no recurrent layer" in refusal(nn.Linear(N, 2), "orthogonal_recurrence")


# cut histories


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_truncation_changes_no_output_and_cuts_the_gradient(kind, batch_first):
    model = Reader(kind, read="last", batch_first=batch_first)
    arm = changed(model, "truncate_bptt", steps=5)  # chunks 0-4, 5-9, 10-11
    torch.testing.assert_close(arm.model(X), model(X))
    whole, cut = X.clone().requires_grad_(), X.clone().requires_grad_()
    model(whole).sum().backward()
    arm.model(cut).sum().backward()
    torch.testing.assert_close(cut.grad[:, 10:], whole.grad[:, 10:])
    assert not cut.grad[:, :10].any()
    assert whole.grad[:, :10].any()


def test_gates_and_chunks_go_together():
    truncate = shelf("gradwell.remedies")["truncate_bptt"].fact("apply")
    arm = changed(Reader(), "gate_recurrence", to="gru")
    before = arm.model(X)
    truncate(arm, steps=5)
    torch.testing.assert_close(arm.model(X), before)
    with pytest.raises(Refused, match="take the GRU for chunks"):
        truncate(changed(Reader(), "gate_recurrence", to="lstm"), steps=5)
    assert "bidirectional" in refusal(Reader(nn.RNN, bidirectional=True), "truncate_bptt", steps=5)
    assert "in your own loop" in refusal(Stepper(Reader()), "truncate_bptt", steps=5)


# the penalty on steps


def omega_by_hand(model, x, read, nonlinearity="tanh"):
    """Sum over t of mean over the batch of (|g_t+1 J| / |g_t+1| - 1)^2 with each step's Jacobian from autograd."""
    model, x = model.double(), x.double()
    cell = nn.RNNCell(N, H, nonlinearity=nonlinearity).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data.copy_(getattr(model.rnn, f"{name}_l0").data)
    states, state = [], x.new_zeros(len(x), H)
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        state.retain_grad()
        states.append(state)
    out = model.head(torch.stack(states, 1) if read == "all" else states[-1])
    square(lambda _: out, None).backward()
    total = 0.0
    for t in range(len(states) - 1):
        for b in range(len(x)):
            jacobian = torch.autograd.functional.jacobian(
                lambda h, t=t, b=b: cell(x[b, t + 1], h), states[t][b].detach()
            )
            g = states[t + 1].grad[b]
            total += ((g @ jacobian).norm() / g.norm() - 1) ** 2 / len(x)
    return float(total)


@pytest.mark.parametrize("read", ["last", "all", "state"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_penalty_is_its_formula_with_jacobians_by_autograd(read, nonlinearity):
    model = Reader(read=read, nonlinearity=nonlinearity)
    arm = changed(model, "temporal_regularizer", weight=3.0)
    loss, extra = losses_of(arm.model, X, square, arm)
    assert loss.item() == pytest.approx(square(model, X).item())
    assert extra.item() == pytest.approx(3 * omega_by_hand(model, X, read, nonlinearity), rel=1e-4)


def test_a_cell_called_step_by_step_has_the_same_penalty():
    model = Reader()
    arm, steps = changed(model, "temporal_regularizer"), changed(Stepper(model), "temporal_regularizer")
    _, fused = losses_of(arm.model, X, square, arm)
    _, by_step = losses_of(steps.model, X, square, steps)
    torch.testing.assert_close(fused, by_step)


def test_the_penalty_moves_the_recurrent_weights_alone_and_towards_one():
    model = Reader()
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(0.2)
    arm = changed(model, "temporal_regularizer")
    _, extra = losses_of(arm.model, X, square, arm)
    extra.backward()
    assert [name for name, p in arm.model.named_parameters() if p.grad is not None and p.grad.any()] == [
        "rnn.weight_hh_l0"
    ]
    before = arm.model.rnn.weight_hh_l0.norm()
    with torch.no_grad():
        arm.model.rnn.weight_hh_l0 -= 0.01 * arm.model.rnn.weight_hh_l0.grad
    assert arm.model.rnn.weight_hh_l0.norm() > before
    _, after = losses_of(arm.model, X, square, arm)
    assert after < extra


def test_who_has_no_such_steps():
    for model in (Reader(nn.LSTM), Reader(bidirectional=True), nn.Linear(N, 2)):
        assert "gates do its work" in refusal(model, "temporal_regularizer")
    assert TimeGain(2.0) == TimeGain(2.0)


# the loss in the middle


def test_an_auxiliary_loss_is_the_same_loss_of_a_head_in_the_middle():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(N, H), nn.Tanh(), nn.Linear(H, H), nn.Tanh(), nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 2)
    )
    arm = changed(model, "auxiliary_loss", weight=0.3, cut="3")
    loss, extra = losses_of(arm.model, X, square, arm)
    middle = arm.model[:4](X)
    torch.testing.assert_close(extra, 0.3 * arm.model[3].aux_head(middle).square().sum(-1).mean())
    torch.testing.assert_close(loss, square(model, X))  # the head is not part of the model's own way
    extra.backward()
    assert arm.model[0].weight.grad.any()
    assert arm.model[4].weight.grad is None
    assert changed(model, "auxiliary_loss").loss_terms[0].cut == "3"  # the middle of four layers
    assert arm.grown["3.aux_head.weight"] == "0.weight"


def test_a_loss_that_looks_into_the_model_has_no_auxiliary_one():
    arm = setup(nn.Sequential(nn.Linear(N, H), nn.Tanh(), nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 2)))
    arm.loss_fn = lambda model, batch: model(batch).square().mean() + model[0].weight.norm()
    with pytest.raises(Refused, match="needs more of the model than its output"):
        shelf("gradwell.remedies")["auxiliary_loss"].fact("apply")(arm)
