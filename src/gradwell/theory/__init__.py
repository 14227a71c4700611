"""Facts of building blocks: what an activation, an initialisation, a norm or a shortcut does to a gradient.

Everything here is computed before any training, from the mean-field theory of wide networks; nothing
needs torch. One legend for the whole floor:

    phi, phi'     the activation and its slope;     z ~ N(0, 1)
    sigma_w2      fan_in * Var(W_ij);               sigma_b2 = Var(b)
    q             E[h^2], the second moment of a pre-activation
    V(q)          E[phi(sqrt(q) z)^2]               D(q) = E[phi'(sqrt(q) z)^2]
    chi           squared-norm gain of the gradient through one layer; norm gain = sqrt(chi)

Floor 1: imports only numpy, scipy.special, msgspec, and our floor 0.
"""
