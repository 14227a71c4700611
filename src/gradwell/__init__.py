"""gradwell: vanishing and exploding gradients in any PyTorch training, found, explained and told in plain numbers.

>>> import gradwell as gw
>>> sorted(gw.__all__)
['Diagnosis', 'GradwellError', 'Prediction', 'Run', 'check', 'load', 'predict']
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwell.errors import GradwellError
    from gradwell.journeys.check import check
    from gradwell.journeys.predict import Prediction, predict
    from gradwell.records.run import Run, load
    from gradwell.records.verdict import Diagnosis

_HOMES = {
    "GradwellError": "gradwell.errors",
    "check": "gradwell.journeys.check",
    "Prediction": "gradwell.journeys.predict",
    "predict": "gradwell.journeys.predict",
    "Run": "gradwell.records.run",
    "load": "gradwell.records.run",
    "Diagnosis": "gradwell.records.verdict",
}
__all__ = ["Diagnosis", "GradwellError", "Prediction", "Run", "check", "load", "predict"]


def __getattr__(name: str) -> Any:
    """Load a public name at first use, so that `import gradwell` costs nothing and needs no torch."""
    if name == "__version__":
        return importlib.metadata.version("gradwell")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwell' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
