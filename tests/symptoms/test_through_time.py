"""Through time: what the loss needs decides, not the length; loops of cells; a run's loss has the last word."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradwell.errors import NotMeasurable
from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.lab.data import echo, recall
from gradwell.measure.through_time import unrolled
from gradwell.records.net import NetConfig
from gradwell.records.run import Header, OptimizerInfo, Run, Site, Step, step_line
from gradwell.symptoms._time import progress
from gradwell.symptoms.exploding_through_time import exploding_through_time
from gradwell.symptoms.vanishing_through_time import missing, vanishing_through_time

BATCH, HIDDEN = 64, 32


class Fused(nn.Module):
    """A fused layer, read at its last step, at all, or at their mean."""

    def __init__(self, kind: str, reading: str = "last", **options: object) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(4, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 4)
        self.reading = reading

    def forward(self, x):
        out = self.rnn(x)[0]
        return self.head({"last": out[:, -1], "all": out, "mean": out.mean(1)}[self.reading])


class Loop(nn.Module):
    """A cell written by hand over the time steps: torch's cells, or a Linear over input and state."""

    def __init__(self, kind: str, *, every_step: bool = False) -> None:
        super().__init__()
        self.kind, self.every_step = kind, every_step
        self.cell = nn.Linear(4 + HIDDEN, HIDDEN) if kind == "Linear" else getattr(nn, kind)(4, HIDDEN)
        self.head = nn.Linear(HIDDEN, 4)

    def forward(self, x):
        state = x.new_zeros(len(x), HIDDEN)
        carry = (state, state) if self.kind == "LSTMCell" else state
        seen = []
        for step in x.unbind(1):
            if self.kind == "Linear":
                carry = torch.tanh(self.cell(torch.cat([step, carry], dim=1)))
            else:
                carry = self.cell(step, carry)
            seen.append(carry[0] if self.kind == "LSTMCell" else carry)
        return self.head(torch.stack(seen, 1)) if self.every_step else self.head(seen[-1])


def task(steps: int, lag: int, *, every_step: bool = False, batch: int = BATCH, seed: int = 0):
    drawn = (echo if every_step else recall)(steps, lag)
    return next(drawn.stream(NetConfig(batch_size=batch, seed=seed)))


def loss_of(scale: float = 1.0):
    return lambda m, b: scale * cross_entropy(m(b[0]).flatten(0, -2), b[1].flatten())


def look(model, batch, *, scale: float = 1.0, optimizer: str | None = "Adam") -> Run:
    stepper = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3) if optimizer else None
    return measure(model, batch, loss_of(scale), stepper)


def found(run: Run) -> dict[str, str]:
    return {finding.symptom: finding.severity for finding in diagnose(run).findings}


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# What the loss needs decides


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("lag", [0, 2, 4])
def test_a_default_net_whose_task_has_short_lags_is_healthy_however_long_the_sequence(kind, lag):
    assert found(look(Fused(kind), task(100, lag))) == {}


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_same_net_is_sick_where_the_loss_asks_about_the_first_input(kind):
    run = look(Fused(kind), task(100, 99))
    (finding,) = diagnose(run).findings
    assert finding.symptom == "vanishing_through_time"
    assert finding.severity in {"serious", "fatal"}
    assert finding.summary.startswith("the loss asks about the input 99 steps before the end of rnn")
    evidence = {item.quantity: item.value for item in finding.evidence}
    assert evidence["lag that the loss asks about"] == 99
    assert evidence["steps"] == 100
    assert evidence["log10_gain a step"] == pytest.approx(-0.22, abs=0.06)
    assert evidence["horizon (4 decades lost)"] == pytest.approx(18, abs=4)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(("lag", "sick"), [(2, False), (30, True)])
def test_a_loss_at_every_step_is_judged_by_the_lag_it_asks_about(kind, lag, sick):
    run = look(Fused(kind, "all"), task(60, lag, every_step=True))
    assert ("vanishing_through_time" in found(run)) is sick


def test_a_mean_over_the_outputs_is_a_short_way_to_every_step():
    assert found(look(Fused("RNN", "mean"), task(100, 99))) == {}


def test_the_direction_that_reads_one_step_only_has_nothing_to_carry():
    """At the last step the reverse direction has seen one input."""
    run = look(Fused("GRU", bidirectional=True), task(100, 2))
    assert [layer.name for layer in unrolled(run, run.steps[0])] == ["rnn", "rnn:reverse"]
    assert found(run) == {}


@pytest.mark.parametrize(("kind", "severity"), [("RNN", {"vanishing_through_time": "mild"}), ("LSTM", {}), ("GRU", {})])
def test_where_the_batch_does_not_show_what_the_loss_needs_only_a_plain_rnn_is_named(kind, severity):
    """As with the adding problem: an RNN does not learn it over 30 steps, a default LSTM does over 100."""
    x, y = task(100, 99)
    run = look(Fused(kind), (x, y[torch.randperm(len(y))]))
    assert found(run) == severity


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("lag", [3, 99])
def test_the_scale_of_the_loss_changes_nothing(factor, lag):
    model = Fused("LSTM")
    plain, scaled = (look(model, task(100, lag), scale=c, optimizer=None) for c in (1.0, factor))
    assert found(plain) == found(scaled)
    assert missing(plain, plain.steps[0]) == pytest.approx(missing(scaled, scaled.steps[0]), abs=1e-3)


@pytest.mark.parametrize("batch", [32, 64, 256])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_size_of_the_batch_changes_nothing(batch, seed):
    torch.manual_seed(seed)
    assert found(look(Fused("RNN"), task(60, 3, batch=batch, seed=seed))) == {}
    assert "vanishing_through_time" in found(look(Fused("RNN"), task(60, 59, batch=batch, seed=seed)))


def test_no_gradient_at_all_where_the_loss_asks_is_fatal():
    model = Fused("RNN")
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(0.1)
    run = look(model, task(120, 119), optimizer=None)
    (finding,) = vanishing_through_time(run)
    assert finding.severity == "fatal"
    assert "exactly no gradient arrives" in finding.summary


def test_a_record_keeps_what_was_heard(tmp_path):
    from gradwell.records.run import header_line, load

    run = look(Fused("RNN"), task(40, 39))
    file = tmp_path / "run.jsonl"
    file.write_bytes(header_line(run.header) + step_line(run.steps[0]))
    again = load(file)
    assert again.steps[0].heard == run.steps[0].heard
    assert again.steps[0].links == run.steps[0].links
    assert found(again) == found(run)


# Cells in a loop


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell", "Linear"])
def test_a_loop_by_hand_is_time_and_told_once(kind):
    run = look(Loop(kind), task(60, 59))
    assert set(found(run)) == {"vanishing_through_time"}
    (layer,) = unrolled(run, run.steps[0])
    assert (layer.name, layer.steps) == ("cell", 60)
    assert layer.rate == pytest.approx(-0.22, abs=0.08)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_loop_by_hand_with_short_lags_is_healthy(kind):
    assert found(look(Loop(kind), task(60, 2))) == {}


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell", "Linear"])
def test_a_loop_by_hand_with_a_loss_at_every_step_is_healthy(kind):
    assert found(look(Loop(kind, every_step=True), task(60, 2, every_step=True))) == {}


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell", "Linear"])
def test_what_comes_in_on_the_way_is_no_explosion(kind):
    """Weights that keep the gradient add up what a hundred steps bring in: a sum, no growth."""
    model = Loop(kind, every_step=True)
    weight = model.cell.weight[:, 4:] if kind == "Linear" else model.cell.weight_hh
    for gate in weight.data.split(HIDDEN):
        nn.init.orthogonal_(gate)
    if kind in {"LSTMCell", "GRUCell"}:
        model.cell.bias_ih.data[HIDDEN : 2 * HIDDEN] = 5.0
    assert found(look(model, task(100, 2, every_step=True))) == {}


def test_a_loop_by_hand_that_explodes():
    model = Loop("RNNCell")
    model.cell.weight_hh.data.mul_(6)
    (finding,) = exploding_through_time(look(model, task(60, 2)))
    assert finding.severity in {"serious", "fatal"}


class OneByOne(nn.Module):
    """A fused layer that is given one step at a time, as a decoder is."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(4, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 4)

    def forward(self, x):
        state = None
        for step in x.split(1, dim=1):
            out, state = self.rnn(step, state)
        return self.head(out[:, -1])


def test_a_fused_layer_called_step_by_step_is_a_loop():
    run = look(OneByOne(), task(60, 59))
    assert found(run) == {"vanishing_through_time": "mild"}  # its inputs are not compared
    (layer,) = unrolled(run, run.steps[0])
    assert layer.steps == 60


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_a_layer_that_is_called_again_for_each_sentence_is_no_loop_that_loses(kind):
    """Ten documents one after the other: no call knows of the other."""

    class Each(Fused):
        def forward(self, x):
            return torch.stack([super(Each, self).forward(part) for part in x.split(5, dim=1)]).mean(0)

    assert found(look(Each(kind), task(50, 2))) == {}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{"proj_size": 8}, {"num_layers": 2, "bidirectional": True}, {"dtype": "bfloat16"}])
def test_odd_layers_are_measured(options):
    kind = {"dtype": torch.bfloat16} if "dtype" in options else {}
    model = Fused("LSTM", **{k: v for k, v in options.items() if k != "dtype"})
    model.head = nn.LazyLinear(4)
    x, y = task(40, 39)
    model(x)
    model, x = model.to(**kind), x.to(**kind)
    run = measure(model, (x, y), lambda m, b: cross_entropy(m(b[0]).float(), b[1]))
    assert max(run.steps[0].links["rnn"]) == run.steps[0].links["rnn"][39] > 0.5


def test_a_cell_sends_back_what_the_fused_layer_sends_back():
    fused, loop = Fused("RNN"), Loop("RNNCell")
    for name, weight in loop.cell.named_parameters():
        weight.data.copy_(getattr(fused.rnn, f"{name}_l0"))
    loop.head.load_state_dict(fused.head.state_dict())
    runs = [look(model, task(40, 39)) for model in (fused, loop)]
    one, other = (next(unrolled(run, run.steps[0])) for run in runs)
    assert one.rate == pytest.approx(other.rate, abs=0.02)
    assert one.links == pytest.approx(other.links, abs=1e-3)
    assert [found(run) for run in runs] == [{"vanishing_through_time": "serious"}] * 2


class Shared(nn.Module):
    """One block again and again: depth with shared weights, no input on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = self.stem(x.flatten(1)[:, :16])
        for _ in range(20):
            x = torch.tanh(self.block(x))
        return self.head(x)


def test_one_layer_again_and_again_without_new_inputs_is_depth():
    run = look(Shared(), task(8, 7))
    assert "vanishing_gradient" in found(run)
    with pytest.raises(NotMeasurable, match="no recurrent layer"):
        list(vanishing_through_time(run))


def test_layers_in_front_of_a_loop_keep_their_own_depth():
    """Twelve layers of a default ReLU net before an RNN: depth is sick, whatever time does."""
    deep = [part for _ in range(12) for part in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), *deep, Tail())
    assert "vanishing_gradient" in found(look(model, task(20, 2)))


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(32, HIDDEN), nn.Linear(HIDDEN, 4)

    def forward(self, x):
        state = x.new_zeros(len(x), HIDDEN)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


# Exploding


def loud(gain: float, steps: int = 60):
    model = Fused("RNN")
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(gain)
    return look(model, task(steps, 3), optimizer="SGD")


def test_growth_is_graded_by_its_decades():
    """E is the largest entry of the lag profile, which test_recurrent.py compares with an autograd loop."""
    for gain, least in ((1.0, None), (4.0, "mild"), (6.0, "serious")):
        run = loud(gain)
        (profile,) = run.steps[0].lags.values()
        findings = list(exploding_through_time(run))
        assert bool(findings) == (least is not None), gain
        for finding in findings:
            assert finding.evidence[0].value == pytest.approx(max(profile))
            assert finding.severity in {"mild", "serious", "fatal"} - ({"mild"} if least == "serious" else set())


def lags_of(sent, heard=None, kind="RNN"):
    """A run of one step with a lag profile of our own making."""
    header = Header("t", optimizers=[OptimizerInfo("SGD")], sites=[Site("rnn", kind)])
    heard = heard or [0.0, *[-math.inf] * (len(sent) - 1)]
    return Run(header, [Step(0, lags={"rnn": sent}, heard={"rnn": heard}, links={"rnn": [0.0] * len(sent)})])


def test_an_overflow_on_the_way_back_is_fatal_and_no_loss():
    run = lags_of([0.0, 20.0, math.inf, math.inf])
    assert [f.severity for f in exploding_through_time(run)] == ["fatal"]
    assert list(vanishing_through_time(run)) == []


@pytest.mark.parametrize("grown", [200.0, 300.0])
def test_hundreds_of_decades_are_counted_without_overflow(grown):
    sent = [grown * k / 20 for k in range(21)]
    (finding,) = exploding_through_time(lags_of(sent))
    assert finding.evidence[0].value == pytest.approx(grown)


def test_what_arrives_is_the_sum_over_the_listening_steps():
    """Twin: the squares added up one by one."""
    sent = [0.0, -0.5, -1.5, -2.0, -math.inf]
    heard = [-1.0, -math.inf, 0.0, -2.0, -math.inf]
    (layer,) = unrolled(run := lags_of(sent, heard), run.steps[0])
    for back in range(5):
        squares = [10 ** (2 * (heard[at] + sent[back - at])) for at in range(back + 1)]
        assert layer.arrives[back] == pytest.approx(0.5 * math.log10(sum(squares)))
    assert layer.listens == 3


def test_two_backward_passes_with_one_number_do_not_mix():
    """A GAN's two losses in one step: only one goes through the recurrent layer."""
    run = lags_of([-0.3 * k for k in range(40)])
    twice = msgspec.structs.replace(run, steps=[run.steps[0], Step(0), run.steps[0], Step(0)])
    assert [f.severity for f in vanishing_through_time(twice)] == ["mild"]


def test_fewer_steps_explode_less():
    short, long = (next(iter(run.steps[0].lags.values())) for run in (loud(5.0, 15), loud(5.0, 60)))
    assert max(short) < max(long)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_default_nets_do_not_explode(kind):
    assert list(exploding_through_time(look(Fused(kind), task(100, 3)))) == []


def test_orthogonal_weights_neither_explode_nor_vanish():
    model = Fused("RNN")
    nn.init.orthogonal_(model.rnn.weight_hh_l0)
    assert found(look(model, task(60, 59))) == {}


# A run's loss has the last word


def course_of(run: Run, losses: list[float], every: int = 50) -> Run:
    steps = [msgspec.structs.replace(run.steps[0], step=n * every, loss=loss) for n, loss in enumerate(losses)]
    return msgspec.structs.replace(run, steps=steps)


GUESSING = math.log(4)


@pytest.mark.parametrize(("losses", "expected"), [
    ([GUESSING] * 12, "stands"),
    ([GUESSING] * 6 + [GUESSING * 0.3] * 6, "learns"),
    ([GUESSING] * 4 + [GUESSING * 0.8] * 8, None),
    ([GUESSING] * 5, None),
    ([2.3, 2.1, 2.2], None),
])  # fmt: skip
def test_progress_of_a_classifier(losses, expected):
    assert progress(course_of(look(Fused("RNN"), task(20, 19)), losses), learning=0.5) == expected


def test_the_first_drop_of_a_regression_only_finds_the_mean():
    header = Header("t", optimizers=[OptimizerInfo("Adam")], sites=[Site("head", "Linear", role="weight", fan_out=1)])

    def run(losses):
        return Run(header, [Step(50 * n, loss=loss, output=0) for n, loss in enumerate(losses)])

    assert progress(run([1.2, 1.2, 1.2] + [0.167] * 30), learning=0.5) is None
    assert progress(run([1.2, 1.2, 1.2] + [0.167] * 10 + [0.01] * 20), learning=0.5) == "learns"


@pytest.mark.parametrize(("kind", "known"), [("RNN", True), ("RNN", False), ("LSTM", True), ("LSTM", False)])
def test_a_training_that_stands_still_is_serious_and_one_that_learns_is_well(kind, known):
    x, y = task(100, 99)
    run = look(Fused(kind), (x, y if known else y[torch.randperm(len(y))]))
    (finding,) = vanishing_through_time(course_of(run, [GUESSING] * 12))
    assert finding.severity in {"serious", "fatal"}
    assert finding.summary.endswith("the loss has not fallen in 550 steps")
    assert list(vanishing_through_time(course_of(run, [GUESSING] * 6 + [0.2] * 6))) == []


def test_an_explosion_that_training_survives_is_mild():
    run = loud(6.0)
    assert [f.severity for f in exploding_through_time(course_of(run, [GUESSING] * 6 + [0.2] * 6))] == ["mild"]


def test_a_training_that_really_learns_a_short_lag_ends_healthy(train_run):
    config = NetConfig(
        kind="lstm", task="recent", depth=1, width=32, batch_size=32, optimizer="Adam", lr=1e-2
    )  # fmt: skip
    run = train_run(config, steps=60, every=10)
    assert run.steps[-1].loss < 0.5 * run.steps[0].loss
    assert list(vanishing_through_time(run)) == []


# Causes and advice


def test_the_long_unroll_and_what_to_paste():
    diagnosis = diagnose(look(Fused("RNN"), task(100, 99)))
    assert [a.cause for a in diagnosis.causes(0)] == ["long_unroll"]
    assert diagnosis.causes(0)[0].summary.startswith("rnn runs over 100 steps and 4 decades are lost within 1")
    first, second = (plan.remedies[0].id for plan in diagnosis.prescriptions[:2])
    assert (first, second) == ("gate_recurrence", "orthogonal_recurrence")
    # The state keeps 1/e over the 99 steps that the loss asks about: logit(1 - 1/99) = log(98).
    assert diagnosis.prescriptions[0].remedies[0].settings["forget_bias"] == pytest.approx(math.log(98), abs=0.05)
    assert "= 4.6 if" in diagnosis.prescriptions[0].in_your_code


def test_a_cell_with_sixty_calls_is_one_place():
    diagnosis = diagnose(look(Loop("RNNCell"), task(60, 59)))
    (line,) = [x for x in diagnosis.prescriptions[0].in_your_code.splitlines() if x.startswith("# concerns")]
    assert line.count("test_through_time.py") == 1


def test_a_clip_is_the_first_advice_against_an_explosion():
    diagnosis = diagnose(loud(6.0))
    assert diagnosis.findings[0].symptom == "exploding_through_time"
    assert "long_unroll" in {a.cause for a in diagnosis.causes(0)}
    assert diagnosis.prescriptions[0].remedies[0].id == "clip_norm"


def test_without_a_recurrent_layer_nothing_is_checked(check_run):
    reasons = {item.symptom: item.reason for item in diagnose(check_run(NetConfig(depth=2))).not_checked}
    for symptom in ("vanishing_through_time", "exploding_through_time"):
        assert reasons[symptom].startswith("the loss goes through no recurrent layer")
