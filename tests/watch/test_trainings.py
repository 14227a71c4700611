"""Watched trainings of every kind: what is counted, what is measured, and that the losses stay bit-equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import gradwell as gw

from .conftest import X, Y, bits, events, loss_of, net, numbers, sgd, train


def params_of(watch) -> list[str]:
    return [param.name for param in watch.run.header.params]


def column(watch, name: str, param: str) -> list[float | None]:
    index = params_of(watch).index(param)
    return [step.of(name, index) for step in watch.run.steps]


# Compiled and wrapped models.


@pytest.fixture
def breaks():
    """Compile without a compiler; counts the graphs that dynamo makes."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield backend, graphs
    torch._dynamo.reset()


class Part(nn.Module):
    """A class of our own: torch does not compile its own classes in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.part, self.head = Part(), nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.part(x))


@pytest.mark.parametrize("way", ["wrapper", "in place", "a part"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_keeps_its_one_graph_and_is_measured_by_its_parameters(way, breaks):
    backend, graphs = breaks

    def compiled():
        model = Body()
        if way == "wrapper":
            return torch.compile(model, backend=backend), model
        (model if way == "in place" else model.part).compile(backend=backend)
        return model, model

    called, inner = compiled()
    losses = train(called, sgd(inner), 5)
    alone, plain = len(graphs), bits(inner)
    torch._dynamo.reset()
    graphs.clear()
    called, inner = compiled()
    with gw.watch(called, every=1) as watch:
        assert train(called, sgd(inner), 5) == losses
    assert bits(inner) == plain
    assert len(graphs) == alone == 1
    assert events(watch) == ["ended"]
    assert numbers(watch) == [0, 1, 2, 3, 4]
    assert params_of(watch) == [name for name, _ in inner.named_parameters()]
    assert all(value > 0 for value in column(watch, "grad_rms", "part.layer.weight"))
    assert all(value > 0 for value in column(watch, "update_rms", "part.layer.weight"))


@pytest.mark.parametrize("given", ["wrapper", "inner"])
def test_data_parallel_leaves_no_prefix_in_the_names(given):
    model = net(2)
    wrapped = nn.DataParallel(model)
    with gw.watch(wrapped if given == "wrapper" else model, every=1) as watch:
        train(wrapped, sgd(wrapped), 2)
    assert [site.site for site in watch.run.sites] == ["0", "1", "2", "3", "4"]
    assert params_of(watch) == [name for name, _ in model.named_parameters()]


def test_distributed_data_parallel_leaves_no_prefix_in_the_names(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain = net(2)
        losses = train(plain, sgd(plain), 3)
        model = net(2)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with gw.watch(wrapped, every=1) as watch:
            assert train(wrapped, sgd(wrapped), 3) == losses
    finally:
        torch.distributed.destroy_process_group()
    assert [site.site for site in watch.run.sites] == ["0", "1", "2", "3", "4"]
    assert params_of(watch) == [name for name, _ in model.named_parameters()]
    assert numbers(watch) == [0, 1, 2]


# What happens in a step.


def test_a_model_called_several_times_with_evaluations_between():
    def body(model, optimizer):
        said = []
        for _ in range(4):
            loss = F.mse_loss(model(model(X)), Y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            said.append(loss.item())
            model.eval()
            with torch.no_grad():
                model(X)
            model(X)  # with a graph, without a backward
            model.train()
        return said

    plain = net()
    losses = body(plain, sgd(plain))
    model = net()
    with gw.watch(model, every=1) as watch:
        assert body(model, sgd(model)) == losses
    assert {(site.site, site.call) for site in watch.run.sites} == {(str(k), c) for k in range(3) for c in range(2)}
    assert all(None not in step.sites["delta_norm"] for step in watch.run.steps)


def test_gradient_accumulation():
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=2) as watch:
        for k in range(12):
            loss_of(model, X[k % 3 :]).backward()
            if k % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert numbers(watch) == [0, 2]
    assert [step.micro_steps for step in watch.run.steps] == [3, 3]


def test_autograd_grad_is_no_step():
    model = net()
    parameters = list(model.parameters())
    with gw.watch(model, every=1) as watch:
        for _ in range(4):
            for p, g in zip(parameters, torch.autograd.grad(loss_of(model), parameters), strict=True):
                p.data -= 0.1 * g
    assert numbers(watch) == []
    assert "instrument_failed" not in events(watch)
    assert watch.diagnose().verdict == "undecided"


def test_steps_that_a_scaler_skips_are_no_steps_and_the_scale_is_taken_out():
    def body(model):
        optimizer, said = sgd(model), []
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for k in range(5):
            optimizer.zero_grad()
            loss = loss_of(model) * (float("inf") if k == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            said.append(loss.item())
        return said

    plain = net()
    losses = body(plain)
    model = net()
    with gw.watch(model, every=1) as watch:
        assert body(model) == losses
    assert bits(model) == bits(plain)
    assert watch.run.events[-1].detail["steps"] == 4
    assert watch.run.events[-1].detail["micro_steps"] == 5
    assert [step.loss_scale for step in watch.run.steps][:2] == [1024.0, 1024.0]
    assert watch.run.steps[0].loss == pytest.approx(losses[0])


def test_a_scaler_of_another_model_is_not_ours():
    model, other = net(), net(seed=1)
    scaler, theirs = torch.amp.GradScaler("cpu", init_scale=1024.0), sgd(other)
    with gw.watch(model, every=1) as watch:
        optimizer = sgd(model)
        for _ in range(3):
            scaler.scale(loss_of(other)).backward()
            scaler.step(theirs)
            scaler.update()
            train(model, optimizer, 1)
    assert [step.loss_scale for step in watch.run.steps] == [None] * 3


def test_a_schedule_and_a_late_group():
    torch.manual_seed(0)
    model = net(2)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    with gw.watch(model, optimizer, every=1) as watch:
        for k in range(6):
            if k == 3:
                optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.2})
            train(model, optimizer, 1)
            schedule.step()
    assert numbers(watch) == [0, 1, 2, 3, 4, 5]
    late = column(watch, "update_rms", "4.weight")
    assert late[:3] == [0.0] * 3
    assert all(value > 0 for value in late[3:])


def test_layers_that_are_frozen_and_thawed():
    model = net(2)
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1) as watch:
        for k in range(6):
            model[0].requires_grad_(k >= 3)
            optimizer.zero_grad(set_to_none=True)
            loss_of(model).backward()
            optimizer.step()
    grads = column(watch, "grad_rms", "0.weight")
    assert grads[:3] == [None] * 3
    assert all(value > 0 for value in grads[3:])
    assert events(watch) == ["ended"]


def test_a_layer_that_is_added_later_belongs_to_the_model():
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1) as watch:
        train(model, optimizer, 2)
        for p in model.parameters():
            p.requires_grad_(False)
        model.append(nn.Linear(8, 8))
        optimizer.add_param_group({"params": model[3].parameters()})
        train(model, optimizer, 2)
    assert numbers(watch) == [0, 1, 2, 3]
    assert column(watch, "update_rms", "3.weight")[2] > 0


def test_a_model_that_changes_its_dtype():
    def body(model, optimizer):
        said = train(model, optimizer, 2)
        model.double()
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.mse_loss(model(X.double()), Y.double())
            loss.backward()
            optimizer.step()
            said.append(loss.item())
        return said

    plain = net()
    losses = body(plain, sgd(plain))
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1) as watch:
        assert body(model, optimizer) == losses
    assert events(watch) == ["ended"]
    assert numbers(watch) == [0, 1, 2, 3]
    assert all(value > 0 for value in column(watch, "update_rms", "0.weight"))


def test_weights_that_are_made_from_others():
    model = net(2)
    parametrizations.weight_norm(model[0])
    with gw.watch(model, every=1) as watch:
        train(model, sgd(model), 3)
    assert numbers(watch) == [0, 1, 2]
    assert "0.parametrizations.weight.original0" in params_of(watch)


def test_a_checkpoint_over_the_whole_model_still_counts():
    model = net(2)
    x = X.clone().requires_grad_()
    with gw.watch(model, every=1) as watch:
        optimizer = sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True).square().mean().backward()
            optimizer.step()
    assert numbers(watch) == [0, 1, 2]
    assert column(watch, "grad_rms", "0.weight")[-1] > 0


def test_lbfgs_takes_many_backward_passes_a_step():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    with gw.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.step(closure)
    assert numbers(watch) == [0, 1, 2]
    assert all(step.micro_steps > 1 for step in watch.run.steps)


def test_an_interrupt_that_the_script_survives():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.broken = net(2), False

        def forward(self, x):
            x = self.body[0](x)
            if self.broken:
                raise KeyboardInterrupt
            return self.body[1:](torch.tanh(x))

    model = Stops()
    with gw.watch(model, every=1) as watch:
        optimizer = sgd(model)
        train(model, optimizer, 1)
        model.broken = True
        with pytest.raises(KeyboardInterrupt):
            model(X)
        model.broken = False
        train(model, optimizer, 1)
        assert torch.overrides._len_torch_function_stack() == 0
    assert watch.run.steps[0].sites.keys() == watch.run.steps[1].sites.keys()
    assert None not in watch.run.steps[1].sites["delta_norm"]
    assert len({(site.site, site.call) for site in watch.run.sites}) == len(watch.run.sites) == 6


def test_a_module_that_calls_itself():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, depth=3):
            return self.layer(x if depth == 0 else torch.tanh(self(x, depth - 1)))

    torch.manual_seed(0)
    model = Again()
    with gw.watch(model, every=1) as watch:
        train(model, sgd(model), 2)
    assert [(site.site, site.call) for site in watch.run.sites if site.kind == "Linear"] == [
        ("layer", call) for call in range(4)
    ]


class Stack(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers, self.head = layers, nn.Linear(8, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


@pytest.mark.parametrize("kept", ["plain", "registered", "given"])
def test_layers_in_a_plain_list_that_no_optimizer_holds_are_told(kept):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(3)]
    model = Stack(nn.ModuleList(layers) if kept == "registered" else layers)
    more = [p for layer in layers for p in layer.parameters()] if kept == "given" else []
    optimizer = torch.optim.SGD([*model.parameters(), *more], lr=0.1)
    with gw.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(model(X), Y).backward()
            optimizer.step()
    told = [note for note in watch.diagnose().notes if "no optimizer holds them" in note]
    assert len(told) == (kept == "plain")
    assert not told or told[0].startswith("6 tensors get a gradient and no optimizer holds them: Linear")
