"""The shelf of activations: one file, one function phi, one id; the docstring is the page.

Facts in each file:

    slope       phi'; at a kink the value PyTorch takes
    KINKS       the x where phi or phi' is not smooth (a panel border of the quadrature lies on each)
    TORCH       torch module classes and functions that compute it; no name is claimed twice
    AUTOGRAD    its autograd nodes; several activations may share one (elu, celu and selu; hardtanh and relu6)
    MAX_SLOPE   sup |phi'| at the default parameters
    SATURATES   whether phi' tends to 0 on both sides
    CAN_DIE     whether phi and phi' are exactly 0 on a half line, so that a unit can stop learning for good
    CODE        the torch expression to paste

Optional: `Z_MAX` (upper cut of the quadrature), `WAVELENGTH` (period in x), `density` (units that are no
elementwise function).
"""
