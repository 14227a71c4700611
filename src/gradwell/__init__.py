"""gradwell: vanishing and exploding gradients in any PyTorch training, found, explained and told in plain numbers.

>>> import gradwell as gw
>>> {"check", "watch", "predict"} < set(gw.__all__)
True
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwell.errors import GradwellError
    from gradwell.journeys.check import check
    from gradwell.journeys.predict import Prediction, predict
    from gradwell.journeys.watch import Watch, watch
    from gradwell.records.run import Event, Run, Step, load
    from gradwell.records.verdict import Diagnosis, Finding
    from gradwell.surgery.setup import TrainSetup

_HOMES = {
    "GradwellError": "gradwell.errors",
    "check": "gradwell.journeys.check",
    "Prediction": "gradwell.journeys.predict",
    "predict": "gradwell.journeys.predict",
    "Watch": "gradwell.journeys.watch",
    "watch": "gradwell.journeys.watch",
    "Event": "gradwell.records.run",
    "treat": "gradwell.journeys.treat",
    "Treatment": "gradwell.records.treatment",
    "Run": "gradwell.records.run",
    "Step": "gradwell.records.run",
    "load": "gradwell.records.run",
    "Diagnosis": "gradwell.records.verdict",
    "Finding": "gradwell.records.verdict",
    "TrainSetup": "gradwell.surgery.setup",
}
__all__ = [
    "Diagnosis", "Event", "Finding", "GradwellError", "Prediction", "Run", "Step", "TrainSetup",
    "Treatment", "Watch", "check", "load", "predict", "treat", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name at first use, so that `import gradwell` costs nothing and needs no torch."""
    if name == "__version__":
        return importlib.metadata.version("gradwell")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwell' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
