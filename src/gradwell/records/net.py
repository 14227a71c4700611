"""A small network and its training as data: what the shelves' `SICK` and `HEALTHY` nets are written in.

`lab.nets` builds the torch module, `lab.tasks` the data; here there is only the description, hashable, printable
and without torch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["mlp", "cnn", "residual", "transformer", "rnn", "lstm", "gru"]


class NetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One small network and how it is trained.

    `depth`: hidden layers (blocks, for residual nets and transformers). `width`: units (channels, for a CNN).
    `init`: id of the shelf of inits; `gain` multiplies the weights after it; `bias_value` fills the biases (None: as
    the init leaves them). `norm`: "", "batch", "layer", "rms"; for a transformer "pre" or "post" layer norm is
    `norm_place`. `detach`: hidden layers of an MLP after which the gradient is cut off (0: nowhere). `shortcut`:
    scale of the branch in x + shortcut * F(x) for `kind="residual"`. `input_scale`, `input_shift` act on the data.
    `output_activation` stands after the last layer. `task`: id in `lab.tasks`.
    `optimizer`: class name in `torch.optim`; `momentum` is read where the optimizer has one.
    """

    kind: Kind = "mlp"
    depth: int = 4
    width: int = 64
    activation: str = "relu"
    init: str = "torch_default"
    gain: float = 1.0
    bias: bool = True
    bias_value: float | None = None
    norm: str = ""
    norm_place: Literal["pre", "post"] = "pre"
    detach: int = 0
    shortcut: float = 1.0
    dropout: float = 0.0
    output_activation: str = ""
    task: str = "digits"
    input_scale: float = 1.0
    input_shift: float = 0.0
    batch_size: int = 128
    loss: Literal["cross_entropy", "mse", "bce"] = "cross_entropy"
    optimizer: str = "SGD"
    lr: float = 0.05
    momentum: float = 0.9
    seed: int = 0
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"

    def __str__(self) -> str:
        told = {f: getattr(self, f) for f in self.__struct_fields__}
        plain = NetConfig()
        parts = [f"{f}={v!r}" for f, v in told.items() if v != getattr(plain, f)]
        return f"NetConfig({', '.join(parts)})"
