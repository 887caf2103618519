# Everything that is installed goes into .venv; Mosquitto comes from the system's packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check bench proto format mosquitto clean

help:
	@echo "make demo    three users on a real broker, the server killed in mid-stream, and an audit"
	@echo "make test    every test, against a real Mosquitto"
	@echo "make check   ruff, mypy --strict, import rules, generated code is current"
	@echo "make bench   throughput, latency and CPU, beside the bare broker; writes bench/latest.json"
	@echo "make proto   regenerates the protobuf code"

$(READY): pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --editable . --group dev
	@touch $@

mosquitto:
	@./deploy/mosquitto/install

demo: $(READY) mosquitto
	@$(BIN)/python -m tests.demo

test: $(READY) mosquitto
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.protocol.generated

bench: $(READY) mosquitto
	@$(BIN)/python -m bench

proto: $(READY)
	@$(BIN)/python -m tests.protocol.generated --write

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
