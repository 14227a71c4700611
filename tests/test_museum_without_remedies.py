"""Each row of the museum once more with its remedy taken out: a test that then still passed would prove nothing.

Rows P10, P12, P13 and P29 need a process group, P16 and P31 a compiler: they have no exhibit. P1 to P33 otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_full_backward_hook

from gradwell.probe import backward, clock, gates, kinds, names, preserve, recorder, sizes, tape
from gradwell.probe.graph import Graph, key_of

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "probe")]
rooms = importlib.import_module("test_museum")
formats = importlib.import_module("test_sizes")
museum = importlib.import_module("museum")

Patch = pytest.MonkeyPatch


def on(test: Callable[..., None], name: str, *rest: Any) -> Callable[[], None]:
    """A museum test on one exhibit."""
    return lambda: test(museum.MUSEUM[name], *rest)


def full_backward_hooks(patch: Patch) -> None:
    start, stop = tape.Tape.start, tape.Tape.stop

    def with_hooks(self: Any) -> None:
        start(self)
        self.full = register_module_full_backward_hook(lambda *_: None)

    def without(self: Any) -> None:
        stop(self)
        if hasattr(self, "full"):
            self.full.remove()

    patch.setattr(tape.Tape, "start", with_hooks)
    patch.setattr(tape.Tape, "stop", without)


def only_the_tensors_own_key(patch: Patch) -> None:
    patch.setattr(tape, "handle_of", lambda tensor: [(key, None)] if (key := key_of(tensor)) else [])


def nodes_by_number(patch: Patch) -> None:
    patch.setattr(Graph, "_topological", lambda self: sorted(self.nodes))


def hooks_that_stay(patch: Patch) -> None:
    patch.setattr(backward.Backward, "close", lambda _: None)


def gradients_at_inputs(patch: Patch) -> None:
    leave = tape.Tape._leave

    def only_with_input(self: Any, module: nn.Module, args: Any, output: Any) -> None:
        wanted = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        leave(self, module, args, output if wanted or list(module.children()) else None)

    patch.setattr(tape.Tape, "_leave", only_with_input)


def tensors_and_flat_tuples(patch: Patch) -> None:
    def plain(output: Any) -> list[Tensor]:
        found = [output] if isinstance(output, Tensor) else list(output) if type(output) is tuple else []
        return [t for t in found if isinstance(t, Tensor) and t.grad_fn is not None]

    patch.setattr(tape, "_with_gradient", plain)


def borders_by_inputs_alone(patch: Patch) -> None:
    inside = Graph.inside
    patch.setattr(Graph, "inside", lambda self, outputs, inputs, _borders: inside(self, outputs, inputs, set()))


def calls_not_counted(patch: Patch) -> None:
    patch.setattr(tape.Visit, "call", property(lambda _: 0, lambda *_: None))


def recomputation_counted(patch: Patch) -> None:
    plan, finish = backward.Backward._plan, backward.Backward.finish

    def tape_goes_on(self: Any) -> None:
        plan(self)
        self._tape.start()

    def until_the_end(self: Any) -> None:
        self._tape.stop()
        self.visits += self._tape.visits
        calls: dict[str, int] = {}
        for visit in self.visits:
            visit.call = calls.get(visit.name, 0)
            calls[visit.name] = visit.call + 1
        finish(self)

    patch.setattr(tape.Tape, "_unwanted", lambda _: False)
    patch.setattr(backward.Backward, "_plan", tape_goes_on)
    patch.setattr(backward.Backward, "finish", until_the_end)


def every_micro_step_a_step(patch: Patch) -> None:
    patch.setattr(recorder.Recorder, "has_optimizer", False)


def no_scaler(patch: Patch) -> None:
    patch.setattr(clock.Monitor, "_take_scale", lambda _: None)


def every_way_through_the_engine(patch: Patch) -> None:
    frame = clock.sys._getframe

    class Code:
        co_name = "backward"

    class Frame:
        f_code = Code

    patch.setattr(clock.sys, "_getframe", lambda depth=0: Frame if depth == 2 else frame(depth + 1))


def nothing_counted_as_nonfinite(patch: Patch) -> None:
    patch.setattr(sizes, "nonfinite_count", lambda *_: 0)


def modules_alone(patch: Patch) -> None:
    patch.setattr(tape._Functions, "set", lambda *_, **__: None)
    patch.setattr(kinds, "activation_names", dict)
    patch.setattr(kinds, "WEIGHT_NODES", set())


def measured_when_overwritten(patch: Patch) -> None:
    patch.setattr(tape, "_overwrites", lambda *_: False)
    measure = tape.Tape.measure

    def late(self: Any) -> None:
        self._waiting = [(visit, output, output._version) for visit, output, _ in self._waiting]
        if not self._stack:
            measure(self)

    patch.setattr(tape.Tape, "measure", late)


def norms_in_their_own_format(patch: Patch) -> None:
    patch.setattr(sizes, "_wide_l2", lambda tensor: tensor.square().sum().sqrt().item())


def norms_of_dense_tensors(patch: Patch) -> None:
    patch.setattr(sizes, "_wide_l2", lambda tensor: torch.linalg.vector_norm(tensor).item())


def transforms_unseen(patch: Patch) -> None:
    patch.setattr(tape, "_is_transformed", lambda: False)


def hooks_on_modules(patch: Patch) -> None:
    place = names.Names.place

    def marked(self: Any, module: nn.Module) -> Any:
        module.__dict__["gradwell_hook"] = lambda: self
        return place(self, module)

    patch.setattr(names.Names, "place", marked)


def gradients_of_what_was_trained_at_first(patch: Patch) -> None:
    def tensors(self: Any) -> list[Tensor | None]:
        return [
            None if known.frozen else reference() for known, reference in zip(self.params, self._tensors, strict=True)
        ]

    patch.setattr(recorder.Recorder, "tensors", property(tensors))


def all_that_was_called(patch: Patch) -> None:
    def take(self: Any, reached: Any) -> Any:
        taken, self.visits = self.visits, []
        for visit in taken:
            reached(visit)
        return taken

    patch.setattr(tape.Tape, "take", take)
    patch.setattr(tape.Tape, "turn_over", lambda _: None)


def zero_for_unknown(patch: Patch) -> None:
    columns = recorder._site_columns
    filled = lambda column: [0.0 if value is None else value for value in column]  # noqa: E731
    patch.setattr(recorder, "_site_columns", lambda *a: {n: filled(c) for n, c in columns(*a).items()})


def norms_of_float32(patch: Patch) -> None:
    patch.setattr(sizes, "_SAFE_LOW", -1.0)


def names_of_classes(patch: Patch) -> None:
    patch.setattr(names, "_holder", lambda module, _frame: (module, ""))


def no_fast_path(patch: Patch) -> None:
    patch.setattr(kinds, "_FAST_PATHS", ())


def gates_on_fused_attention(patch: Patch) -> None:
    patch.setattr(gates, "differentiable", contextlib.nullcontext)


def random_numbers_used_up(patch: Patch) -> None:
    patch.setattr(preserve.torch.random, "fork_rng", lambda **_: contextlib.nullcontext())


WITHOUT: list[tuple[str, Callable[[Patch], None], Callable[[], None]]] = [
    ("P1", full_backward_hooks, on(rooms.test_training_is_bit_equal_with_and_without_us, "residual_inplace")),
    ("P1", full_backward_hooks, on(rooms.test_training_is_bit_equal_with_and_without_us, "relu_on_own_input")),
    ("P2", only_the_tensors_own_key, rooms.test_p2_a_view_that_is_overwritten_has_the_delta_of_its_base),
    ("P3", nodes_by_number, rooms.test_p3_a_stale_alias_does_not_break_the_path),
    ("P4", hooks_that_stay, on(rooms.test_no_hook_stays_on_the_graph, "residual_inplace")),
    ("P5", gradients_at_inputs, on(rooms.test_check_measures_the_sites_that_matter, "frozen_prefix")),
    ("P6", tensors_and_flat_tuples, on(rooms.test_check_measures_the_sites_that_matter, "dict_output")),
    ("P6", tensors_and_flat_tuples, on(rooms.test_check_measures_the_sites_that_matter, "lstm_hidden_only")),
    ("P7", borders_by_inputs_alone, rooms.test_p7_a_layer_that_gets_keywords_has_the_gain_of_itself_alone),
    ("P8", calls_not_counted, rooms.test_p8_calls_are_counted_and_share_one_parameter),
    ("P9", recomputation_counted, lambda: rooms.test_p9_a_recomputation_is_not_counted_again("checkpoint_reentrant")),
    ("P11", every_micro_step_a_step, rooms.test_p11_micro_steps_are_counted_within_a_step),
    ("P14", no_scaler, rooms.test_p14_the_loss_scale_is_told),
    ("P15", every_micro_step_a_step, on(rooms.test_training_is_bit_equal_with_and_without_us, "lbfgs")),
    ("P17", every_way_through_the_engine, rooms.test_p17_autograd_grad_is_no_step),
    ("P18", nothing_counted_as_nonfinite, rooms.test_p18_nan_is_an_event_and_counted),
    ("P19", modules_alone, on(rooms.test_check_measures_the_sites_that_matter, "functional_weights")),
    ("P20", measured_when_overwritten, rooms.test_p20_sizes_of_the_preactivation_are_taken_before_it_is_overwritten),
    ("P21", norms_in_their_own_format, lambda: formats.test_l2_of_every_format(torch.float16)),
    ("P22", norms_of_dense_tensors, rooms.test_p22_norms_of_sparse_gradients_are_right),
    ("P23", transforms_unseen, on(rooms.test_check_measures_the_sites_that_matter, "grad_transform_inside")),
    ("P24", hooks_on_modules, rooms.test_p24_a_watched_model_can_be_copied_and_pickled),
    ("P25", gradients_of_what_was_trained_at_first, rooms.test_p25_what_is_unfrozen_later_appears_later),
    ("P26", all_that_was_called, lambda: rooms.test_p26_evaluation_leaves_the_sites_alone("evaluation_with_gradients")),
    ("P27", zero_for_unknown, rooms.test_p27_what_is_not_in_the_loss_has_no_delta_rather_than_zero),
    ("P30", norms_of_float32, lambda: formats.test_l2_of_float32_from_end_to_end(-30)),
    ("P32", names_of_classes, rooms.test_p32_layers_in_a_list_get_the_names_of_the_list),
    ("P33", gates_on_fused_attention, rooms.test_p33_attention_and_views_can_be_gated_and_what_cannot_is_said),
    ("P28", no_fast_path, on(rooms.test_loss_and_gradients_are_those_of_a_plain_pass, "frozen_backbone")),
    ("random", random_numbers_used_up, on(rooms.test_check_leaves_no_trace, "checkpoint_draws_again", "flow")),
]


EVERY = [pytest.param(out, test, id=f"{row} {out.__name__} {n}") for n, (row, out, test) in enumerate(WITHOUT)]
WRONG = (AssertionError, RuntimeError, TypeError, AttributeError, KeyError, pickle.PicklingError)


@pytest.mark.parametrize(("take_out", "still"), EVERY)
@pytest.mark.filterwarnings("ignore")
def test_fails_without_the_remedy(take_out, still, monkeypatch):
    torch.set_num_threads(1)
    still()  # it passes with the remedy
    with monkeypatch.context() as patch:
        take_out(patch)
        with pytest.raises(WRONG):
            still()


def test_every_row_has_its_turn():
    alone = {"P10", "P12", "P13", "P16", "P29", "P31"}
    assert {row for row, _, _ in WITHOUT if row.startswith("P")} | alone == {f"P{n}" for n in range(1, 34)}
