"""The shelf of initialisations: one file, one function, one id; the docstring is the page.

Every function takes (fan_in, fan_out, *, activation, ...) and returns `Variances`, what the mean-field
theory needs to know; `CODE` holds the lines of plain PyTorch that draw a layer named `layer` that way.
`fan_in` and `fan_out` count the inputs of a unit and the units an input feeds: for a convolution times the
kernel's size, except where a page says channels.
"""

from gradwell.theory.inits._variances import Variances as Variances
