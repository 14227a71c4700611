"""Scripts in the wild style under `gradwell run`: the right verdict, and the same bits as under plain python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
HEALTHY = [
    "plain_mlp", "cnn_inplace_residual", "lstm", "transformer_dict", "gan", "manual_sgd", "lbfgs", "accumulate_clip",
    "layers_in_list", "training_step",
]  # fmt: skip
SICK = {
    "sick_mlp_relu": "vanishing_gradient",
    "sick_layers_in_list": "vanishing_gradient",
    "sick_manual_sgd_explode": "exploding_gradient",
    "sick_nan": "nonfinite_value",
}


def _run(folder: Path, name: str) -> tuple[dict, str]:
    script = str(SCRIPTS / f"{name}.py")
    command = [sys.executable, "-W", "default", "-m", "gradwell", "run", "--quiet", "--out", str(folder), script]
    ours = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    plain = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)
    return json.loads((folder / "diagnosis.json").read_text()), ours.stderr


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_scripts_come_out_healthy(tmp_path: Path, name: str) -> None:
    diagnosis, _ = _run(tmp_path, name)
    assert diagnosis["verdict"] in ("healthy", "mild"), diagnosis["findings"]
    assert not [f for f in diagnosis["findings"] if f["severity"] != "mild"]
    assert diagnosis["overhead"]["sampled_steps"] >= 3
    assert diagnosis["profile"]


@pytest.mark.parametrize("name", SICK)
def test_sick_scripts_are_named(tmp_path: Path, name: str) -> None:
    diagnosis, _ = _run(tmp_path, name)
    first = diagnosis["findings"][0]
    assert first["symptom"] == SICK[name]
    assert first["severity"] in ("serious", "fatal")
    if name != "sick_nan":
        shares = [a["decades"] for a in diagnosis["attributions"] if a["finding"] == 0 and a["kind"] == "share"]
        assert shares
