# The two commands: `make demo` and `make test`. Each builds .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint proof clean $(VENV)

demo: $(STAMP)
	$(BIN)/gradwell demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What takes long: calibration and cost tables of docs/.
proof: $(STAMP)
	$(BIN)/python benchmarks/calibrate.py
	$(BIN)/python benchmarks/check_cost.py
	$(BIN)/python benchmarks/predict_cost.py
	$(BIN)/python benchmarks/treat_cases.py
	$(BIN)/python -m benchmarks.verdicts --docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[corpus]"
	$(BIN)/python benchmarks/transformers_corpus.py --docs

$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
