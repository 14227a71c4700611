"""The whole treatment: a sick net is cured with evidence, a healthy one left alone; an arm fails alone."""

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import gradwell as gw
from gradwell.errors import NotMeasurable, Refused, UsageError
from gradwell.journeys.treat import treat
from gradwell.records.treatment import Outcome, ranked
from gradwell.records.verdict import Remedy
from gradwell.surgery.loop import train
from gradwell.trial.arms import MOST, Arm, apply, candidates, with_lines
from gradwell.trial.schedule import USUAL, Trial
from gradwell.trial.train import Job, held_loss, work

spec = importlib.util.spec_from_file_location("trial_nets", Path(__file__).with_name("nets.py"))
nets = sys.modules.setdefault("trial_nets", importlib.util.module_from_spec(spec))
if not hasattr(nets, "healthy"):
    spec.loader.exec_module(nets)

CURE = Arm((Remedy("swap_activation", {"to": "tanh"}), Remedy("reinit", {"init": "xavier"})), "the lines")
NOTHING = Arm((Remedy("weight_decay", {"decay": 0.0}),), "no line")
BROKEN = Arm((Remedy("scale_lr", {"factor": "much"}),), "")


@pytest.fixture(scope="module")
def treated():
    setup = nets.sick()
    before = {k: v.clone() for k, v in setup.model.state_dict().items()}
    state = torch.get_rng_state()
    told = []
    treatment = treat(
        setup, minutes=2, seeds=3, arms=[NOTHING, CURE, BROKEN], tick=lambda words, *count: told.append((words, *count))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in setup.model.state_dict().items())
    assert (setup.applied, setup.lr_scale) == ([], 1.0)
    return setup, treatment, told


def test_a_sick_net_is_cured_with_an_interval_and_its_symptom_gone(treated):
    _, treatment, _ = treated
    best = treatment.best
    assert treatment.sick
    assert treatment.cured
    assert best.remedies == list(CURE.remedies)
    assert best.verdict == "cures"
    low, high = best.interval
    assert low <= best.effect_log10_loss <= high < 0
    assert "vanishing_gradient" in best.cured
    assert "vanishing_gradient" not in {f.symptom for f in treatment.after.findings}
    assert len(best.losses) == treatment.seeds == 3
    assert best.in_your_code.startswith("the lines")


def test_an_arm_that_does_nothing_has_no_effect_and_the_control_holds_0(treated):
    _, treatment, _ = treated
    nothing = next(o for o in treatment.outcomes if o.remedies == list(NOTHING.remedies))
    assert nothing.verdict in {"no effect", "undecided"}
    low, high = treatment.control.interval
    assert low <= 0 <= high


def test_an_arm_that_raises_is_told_once_and_the_others_go_on(treated):
    _, treatment, _ = treated
    assert not any(o.remedies == list(BROKEN.remedies) for o in treatment.outcomes)
    (note,) = treatment.notes
    assert note.startswith("scale_lr: ")
    assert "TypeError" in note


def test_the_best_change_comes_onto_a_copy_of_the_setup(treated):
    setup, treatment, _ = treated
    changed = treatment.best.apply(setup)
    assert changed is not setup
    assert any(isinstance(m, nn.Tanh) for m in changed.model.modules())
    assert not any(isinstance(m, nn.Tanh) for m in setup.model.modules())
    assert changed.lr_scale == treatment.best.lr_scale
    train(changed, steps=150)
    assert held_loss(changed) < 0.5 * held_loss(setup)


def test_the_judged_runs_are_runs_that_anyone_can_repeat(treated):
    setup, treatment, _ = treated
    best = treatment.best
    job = Job(tuple(best.remedies), best.lr_scale, seed=1, steps=treatment.steps, limit_s=60)
    assert work(setup, job).loss == best.losses[1]
    base = Job((), treatment.baseline.lr_scale, seed=2, steps=treatment.steps, limit_s=60)
    assert work(setup, base).loss == treatment.baseline.losses[2]


def test_progress_is_told(treated):
    *_, told = treated
    stages = list(dict.fromkeys(words for words, *_ in told))
    assert stages[0] == "diagnosing"
    assert stages[-1] == "judging on fresh seeds"
    assert all(0 <= done <= count for _, done, count in told)


def test_the_record_is_the_contracts(treated):
    _, treatment, _ = treated
    record = json.loads(treatment.to_json())
    assert record["schema"] == 1
    assert {"diagnosis", "baseline", "control", "outcomes", "steps", "seeds", "seconds"} <= set(record)
    assert record["diagnosis"]["schema"] == 1
    promised = {
        "remedies", "lr_scale", "effect_log10_loss", "interval", "infeasible_frac", "cured", "caused",
        "step_time_ratio", "verdict", "in_your_code",
    }  # fmt: skip
    assert all(promised <= set(outcome) for outcome in record["outcomes"])
    assert record["outcomes"][0]["verdict"] == "cures"


def test_the_text_says_what_cures_with_its_evidence_and_the_lines(treated):
    _, treatment, _ = treated
    text = str(treatment)
    assert text.startswith("CURED by swap_activation(to=tanh) + reinit(init=xavier): the loss becomes ")
    assert "95 % interval" in text
    assert "      the lines" in text
    assert "the baseline against itself" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_healthy_net_yields_nothing_to_cure():
    treatment = gw.treat(nets.healthy(), minutes=2)
    assert treatment.diagnosis.verdict == "healthy"
    assert treatment.outcomes == []
    assert treatment.best is None
    assert not treatment.sick
    assert str(treatment).startswith("NOTHING TO CURE: HEALTHY")


def test_threads_do_as_well():
    with ThreadPoolExecutor(2) as pool:
        treatment = treat(nets.sick(steps=20), minutes=1, seeds=2, arms=[CURE], executor=pool)
    found = next(o for o in treatment.outcomes if o.remedies == list(CURE.remedies))
    job = Job(CURE.remedies, found.lr_scale, seed=1, steps=treatment.steps, limit_s=60)
    assert found.losses[1] == work(nets.sick(), job).loss


def test_what_the_time_does_not_suffice_for_is_undecided():
    treatment = treat(nets.sick(steps=100_000), minutes=0.05, arms=[CURE, NOTHING])
    assert all(o.verdict == "undecided" or o.interval[0] is not None for o in treatment.outcomes)
    assert treatment.steps < 100_000


# What is refused, and what passes through.


def test_what_cannot_be_meant_is_refused_in_a_sentence():
    setup = nets.healthy()
    with pytest.raises(UsageError, match="needs a TrainSetup, found Sequential"):
        treat(setup.model)
    with pytest.raises(UsageError, match="minutes must be above 0"):
        treat(setup, minutes=0)
    with pytest.raises(UsageError, match="seeds must be at least 2, found 1"):
        treat(setup, seeds=1)
    setup.batches = None
    with pytest.raises(UsageError, match="give the TrainSetup `batches`"):
        treat(setup)


def test_a_loss_that_has_no_logarithm_is_refused():
    setup = nets.healthy()
    setup.loss_fn = lambda model, batch: nets.cross_entropy(model, batch) - 5
    with pytest.raises(NotMeasurable, match=r"log10 of the loss, and this loss is -4\.\d+; add a constant"):
        treat(setup)


def test_the_users_exception_is_the_users():
    setup = nets.healthy()

    def loss_fn(model, batch):
        raise ZeroDivisionError("mine")

    setup.loss_fn = loss_fn
    with pytest.raises(ZeroDivisionError, match="mine"):
        treat(setup)


def test_a_remedy_that_cannot_act_is_refused(monkeypatch):
    monkeypatch.delattr("gradwell.remedies.scale_lr.apply")
    with pytest.raises(Refused, match="scale_lr cannot be tried on a copy"):
        apply(nets.healthy(), [Remedy("scale_lr", {"factor": 0.1})])


# Candidates and ranking.


def test_candidates_are_at_most_twelve_unlike_each_other_and_joint_ones_are_among_them():
    run = work(nets.sick(), Job((), 1.0, 0, 20, 60.0, watched=20)).run
    found = candidates(run, run.diagnose())
    assert 4 <= len(found) <= MOST
    assert len({repr(arm.remedies) for arm in found}) == len(found)
    assert any(len(arm.remedies) == 2 for arm in found)
    assert all(arm.in_your_code for arm in found)
    healthy = work(nets.healthy(), Job((), 1.0, 0, 20, 60.0, watched=20)).run
    assert candidates(healthy, healthy.diagnose()) == []


def test_a_named_arm_gets_its_lines_to_paste():
    run = work(nets.sick(), Job((), 1.0, 0, 20, 60.0, watched=20)).run
    diagnosis = run.diagnose()
    bare = Arm((Remedy("swap_activation", {"to": "relu"}), Remedy("reinit", {"init": "he"})))
    lines = with_lines(bare, run, diagnosis).in_your_code
    assert "nn.ReLU()" in lines
    assert "kaiming_normal_" in lines
    assert with_lines(CURE, run, diagnosis) is CURE
    strange = with_lines(Arm((Remedy("truncate_bptt", {"steps": 5}),)), run, diagnosis)
    assert strange.in_your_code == "# truncate_bptt(steps=5) comes here"


def test_outcomes_are_ranked_by_verdict_then_effect():
    def outcome(verdict, effect):
        return Outcome([Remedy("reinit")], 1.0, effect, verdict=verdict)

    given = [outcome("harms", -9.0), outcome("cures", -0.5), outcome("undecided", None), outcome("cures", -1.5),
             outcome("undecided", -3.0), outcome("helps", -2.0), outcome("no effect", 0.0)]  # fmt: skip
    order = [(o.verdict, o.effect_log10_loss) for o in ranked(given)]
    assert order == [("cures", -1.5), ("cures", -0.5), ("helps", -2.0), ("no effect", 0.0), ("undecided", -3.0),
                     ("undecided", None), ("harms", -9.0)]  # fmt: skip


def test_a_rate_that_is_far_off_is_found_beyond_the_usual_ones():
    setup = nets.healthy(steps=60)
    setup.make_optimizer = lambda params: torch.optim.SGD(params, lr=1e-6)
    rate = Arm((Remedy("scale_lr", {"factor": 100.0}),), "")
    treatment = treat(setup, minutes=1, seeds=2, arms=[rate])
    best = treatment.outcomes[0]
    assert best.remedies[0].id == "scale_lr"
    assert best.remedies[0].settings["factor"] > 1e4
    assert best.lr_scale == 1.0
    assert best.verdict == "cures"
    assert f'group["lr"] *= {best.remedies[0].settings["factor"]:.3g}' in best.in_your_code


def test_a_longer_time_gives_longer_runs_up_to_the_setups_steps():
    def steps(seconds, wanted):
        import time

        trial = Trial(
            [CURE] * 9, nets_runner(), seeds=5, until=time.monotonic() + seconds, tick=lambda *_: None, lines={}
        )
        trial.step_s, trial.extra_s = 1e-3, 0.05
        return trial.plan(wanted)

    short, long = steps(20, USUAL), steps(200, USUAL)
    assert short.steps < long.steps == USUAL
    assert short.judged < long.judged
    assert steps(200, 50).steps == 50


def nets_runner():
    from gradwell.trial.workers import Inline

    return Inline(nets.healthy())
