"""Edits to a copy of a training, safely: names, shapes, dtype, device and shared parts stay, or the edit is refused.

`setup` holds the one mutable noun (`TrainSetup`), `loop` trains it the way a user's loop would; `replace`, `attach`
and `reinit` edit models, `gradients`, `optimizers` and `terms` what stands between the loss and the step.
"""
