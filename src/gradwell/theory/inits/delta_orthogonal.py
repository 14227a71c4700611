"""An orthogonal matrix at the centre of the kernel."""

from __future__ import annotations

from gradwell.errors import UsageError
from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.zeros_(layer.weight)
nn.init.zeros_(layer.bias)
centre = tuple(size // 2 for size in layer.kernel_size)
with torch.no_grad():
    nn.init.orthogonal_(layer.weight[(slice(None), slice(None), *centre)])
"""


def delta_orthogonal(fan_in: int, fan_out: int, *, activation: str = "tanh", gain: float = 1.0) -> Variances:
    """Convolution kernels that are zero except at the centre, where they are orthogonal.

    Formula:
        kernel[:, :, centre] = gain * Q with orthonormal columns, 0 elsewhere; b = 0. fan_in and fan_out are
        CHANNELS here: sigma_w2 = gain^2 fan_in / fan_out.

    When to use it:
        Very deep plain CNNs (10,000 layers of tanh) at the critical point: all spatial frequencies of the
        signal pass alike.

    When it fails:
        It needs at least as many output as input channels; with ReLU it is no isometry.

    Source:
        Xiao et al. 2018.
    """
    check_layer(fan_in, fan_out, activation)
    if fan_out < fan_in:
        raise UsageError(
            f"delta_orthogonal needs at least as many output as input channels and was given {fan_in} -> {fan_out}; "
            "use `orthogonal` for this layer."
        )
    # orthonormal columns: |W|_F^2 = gain^2 fan_in, shared by fan_out rows
    return Variances(gain**2 * fan_in / fan_out)
