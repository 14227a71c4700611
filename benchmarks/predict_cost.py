"""What a prediction costs: milliseconds of one process, the best of several calls, without the import.

Run: `python benchmarks/predict_cost.py`. Prints a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gradwell.journeys.predict import phase_diagram, predict

SIGMA_W2 = [1 + k / 8 for k in range(24)]
CASES: dict[str, Callable[[], object]] = {
    "predict(50, 'tanh', 'xavier', width=256)": lambda: predict(50, "tanh", "xavier", width=256),
    "predict(50, 'relu', 'he', width=256)": lambda: predict(50, "relu", "he", width=256),
    "predict(50, 'gelu', 'he', width=256)": lambda: predict(50, "gelu", "he", width=256),
    "predict(50, 'sigmoid', 'centred_sigmoid')": lambda: predict(50, "sigmoid", "centred_sigmoid"),
    "phase_diagram('tanh', 24 x 100)": lambda: phase_diagram(
        "tanh", [1 + k / 8 for k in range(24)], range(1, 101), 0.05
    ),
}


def main() -> None:
    print("| call | first call, ms | best of 5, ms |")
    print("|---|---|---|")
    for name, call in CASES.items():
        times = []
        for _ in range(6):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        print(f"| `{name}` | {times[0]:.1f} | {min(times[1:]):.1f} |", flush=True)


if __name__ == "__main__":
    main()
