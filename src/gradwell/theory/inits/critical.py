"""The critical point of each activation."""

from __future__ import annotations

from gradwell.errors import UsageError
from gradwell.theory.inits._variances import Variances, check_layer
from gradwell.theory.meanfield import critical_line, critical_point

CODE = """\
sigma_w2, sigma_b2 = 1.98305826, 0.17292239  # GELU; `gradwell explain critical` names the others
nn.init.normal_(layer.weight, std=(sigma_w2 / layer.in_features) ** 0.5)
nn.init.normal_(layer.bias, std=sigma_b2**0.5)
"""


def critical(fan_in: int, fan_out: int, *, activation: str = "gelu", sigma_b2: float = 0.0) -> Variances:
    """Critical: for each activation the variances at which signals and gradients neither shrink nor grow.

    Formula:
        chi = sigma_w2 D(q*) = 1 at the fixed point q* = sigma_w2 V(q*) + sigma_b2. ReLU 2, tanh 1, erf
        pi/4, with sigma_b2 = 0; GELU, SiLU, Mish and hardswish exist only with sigma_b2 > 0 (about 0.17,
        0.56, 0.09, 0.51). With sigma_b2 given, the point on the critical line there.

    When to use it:
        Deep plain nets without norms; the numbers are computed by quadrature, not typed in.

    When it fails:
        For softplus and exp there is none. For sigmoid it exists at sigma_w2 = 103 but is of no use: take
        `centred_sigmoid`. The points with sigma_b2 > 0 attract q from one side only: beyond some 1,000
        layers Mish explodes (5 decades) and GELU, SiLU and hardswish lose 4 or 5. It describes the start of
        training only.

    Source:
        Schoenholz et al. 2017; Roberts, Yaida, Hanin 2022 (PDLT), section 5.
    """
    check_layer(fan_in, fan_out, activation)
    point = critical_line(activation, sigma_b2) if sigma_b2 else critical_point(activation)
    if point.sigma_w2 is None or point.sigma_b2 is None:
        raise UsageError(
            f"The activation {activation!r} has no stable critical initialisation; "
            "use another activation, or put a norm that removes the mean before it."
        )
    return Variances(point.sigma_w2, point.sigma_b2)
