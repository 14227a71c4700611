"""Names and lines: what a person would call the module, and where they built it."""

from __future__ import annotations

import gc
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.journeys.check import measure
from gradwell.probe.names import Construction, Names
from gradwell.probe.tape import Tape

HERE = Path(__file__)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.rest = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x


def line_of(text: str) -> int:
    """The line of this file that holds `text` first."""
    lines = HERE.read_text().splitlines()
    return next(n for n, line in enumerate(lines, start=1) if text in line)


def called(*calls: Any) -> list[str]:
    names = Names()
    tape = Tape(names)
    tape.start()
    try:
        for call in calls:
            call()
    finally:
        tape.stop()
    return [visit.name for visit in tape.visits]


X = torch.randn(3, 4)


def test_a_model_by_its_variable_has_plain_names():
    model = Block()
    assert called(lambda: model(X)) == ["first", "rest.0", "rest.1"]


def test_two_roots_keep_their_variables():
    encoder, decoder = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    assert called(lambda: decoder(encoder(X))) == ["encoder.0", "decoder.0"]


def test_elements_of_lists_and_dicts():
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    parts = {"head": nn.Linear(4, 4)}
    assert called(lambda: parts["head"](layers[1](layers[0](X)))) == ["layers[0]", "layers[1]", "parts['head']"]


def test_an_object_that_is_no_module():
    class Trainer:
        def __init__(self) -> None:
            self.net = nn.Sequential(nn.Linear(4, 4))

        def step(self) -> Tensor:
            return self.net(X)

    trainer = Trainer()
    assert called(trainer.step) == ["net.0"]


def test_a_child_called_by_its_parents_own_method():
    class Model(Block):
        def training_step(self, x: Tensor) -> Tensor:
            return self.rest[0](self.first(x))

    model = Model()
    assert called(lambda: model.training_step(X)) == ["first", "rest.0"]


def test_objects_that_dislike_being_looked_at():
    """Proxies and lazy objects among the user's variables are looked at without being woken."""

    class Touchy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("do not touch")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("do not compare")

        __hash__ = None  # type: ignore[assignment]

        def __bool__(self) -> bool:
            raise RuntimeError("do not ask")

    touchy, table = Touchy(), [Touchy()]
    part = nn.Linear(4, 4)
    assert called(lambda: part(X)) == ["part"]
    assert touchy is not table


def test_the_line_of_construction():
    construction = Construction().on()
    try:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # the line of construction
        block = Block()
    finally:
        construction.off()
    here = f"{HERE.name}:{line_of('# the line of ' + 'construction')}"
    assert construction.line(model[0]).endswith(here)
    assert construction.line(model[1]).endswith(here)
    assert construction.line(block.first).endswith(f":{line_of('self.first = nn.Linear')}")
    run = measure(model, X, lambda m, b: m(b).sum(), construction=construction)
    assert run.sites[0].source.endswith(here)


def test_construction_forgets_modules_that_are_gone_and_leaves_the_class_alone():
    original = nn.Module.__init__
    construction = Construction().on()
    try:
        nn.Linear(2, 2)
        gc.collect()
        assert construction._lines == {}
    finally:
        construction.off()
    assert nn.Module.__init__ is original
    assert next(iter(inspect.signature(nn.Module.__init__).parameters)) == "self"


def test_the_line_of_the_assignment_where_construction_was_not_watched():
    model = Block()
    run = measure(model, X, lambda m, b: m(b).sum())
    assert run.sites[0].source.endswith(f"{HERE.name}:{line_of('self.first = nn.Linear')}")
    assert run.sites[1].source.endswith(f"{HERE.name}:{line_of('self.rest = nn.ModuleList')}")


def test_a_library_module_has_no_line_of_the_users():
    run = measure(nn.Sequential(nn.Linear(4, 4)), X, lambda m, b: m(b).sum())
    assert run.sites[0].source is None


def test_tied_parameters_have_one_name_and_shared_modules_one():
    names = Names()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    names.root(model, "")
    assert [names.parameter(p)[0] for p in names.parameters()] == ["0.weight", "0.bias", "1.bias"]


def test_names_keep_nothing_alive_and_never_mix_up_ids():
    names = Names()
    model = nn.Sequential(nn.Linear(4, 4))
    names.root(model, "old")
    assert names.module(model[0]) == ("old.0", "old")
    del model
    gc.collect()
    assert list(names.parameters()) == []
    for _ in range(50):  # some of these get the ids of the dead
        fresh = nn.Linear(4, 4)
        assert names.module(fresh) == ("Linear", "")


def test_lines_never_come_from_a_module_that_is_gone():
    names = Names()
    for _ in range(20):
        block = Block()
        names.root(block, "")
        assert names.source(block.first) is not None
        del block
    gc.collect()
    seen = set()
    for _ in range(200):
        stranger = nn.Linear(4, 4)
        seen.add(names.source(stranger))
        del stranger
    assert seen == {None}


def test_a_list_of_many_is_found_by_identity():
    layers = [nn.Linear(2, 2) for _ in range(50)]
    x = torch.randn(1, 2)
    assert called(lambda: layers[49](x)) == ["layers[49]"]
    assert sys.getrefcount(layers[49]) < 10


def test_a_parameter_in_the_place_of_one_that_is_gone_has_its_own_name():
    gone = nn.Linear(2, 2)
    names = Names()
    names.root(gone, "gone")
    left = dict(names._parameters)
    model = nn.Sequential(nn.Linear(2, 2))
    stale = left[id(gone.weight)]
    del gone
    names._parameters[id(model[0].weight)] = stale  # the id of a dead parameter, given out again
    names.root(model, "net")
    assert names.parameter(model[0].weight) == ("net.0.weight", "net.0")


def test_a_layer_in_a_plain_list_is_looked_for_less_and_less_often(monkeypatch):
    model, hidden = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    names = Names()
    names.root(model, "")
    walks = []
    monkeypatch.setattr(names, "_learn_newcomers", lambda: walks.append(1) or Names._learn_newcomers(names))
    assert {names.module(hidden) for _ in range(1000)} == {("Linear", "")}
    assert len(walks) == 10
    model.append(hidden)  # what is registered later is found all the same
    assert {names.module(hidden) for _ in range(1000)} == {("Linear", ""), ("1", "Sequential")}
    assert len(walks) == 11
    late = nn.Linear(2, 2)
    model.append(late)
    assert names.module(late) == ("2", "Sequential")  # at once, where it has not been asked for before
