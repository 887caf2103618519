# Python packages go into .venv. Mosquitto, and Redis for tests and benchmarks, are installed as system packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests run in two processes more than there are cores. JOBS=2: in two; JOBS=0: only in pytest's own.
JOBS ?= auto
# Without bytecode on disk, every process would rewrite the assertions of all test modules in every run.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(JOBS) --dist worksteal

.PHONY: help demo test verify chaos soak fuzz check bench proto docs lock format mosquitto redis clean

help:
	@echo "make demo    three users on a real broker, the server killed in mid-stream, and an audit"
	@echo "make test    the tests, against a real Mosquitto and Redis, and MongoDB's protocol: some minutes"
	@echo "make verify  tests that take longer: thousands of simulated worlds, 30-second outages, chaos, fuzzing"
	@echo "make chaos   kills, pauses, disconnects and wipes real parts while real devices use them, and checks the histories"
	@echo "make soak    a million messages with a fault every ten seconds; reports growth of memory and files"
	@echo "make fuzz    the codecs and the MQTT parser, coverage-guided, for ten minutes (SECONDS=600)"
	@echo "make check   ruff, mypy --strict, import rules, generated code is current"
	@echo "make bench   throughput, latency and CPU of messages, catching up and connecting: four minutes; writes bench/latest.json"
	@echo "make proto   regenerates the protobuf code"
	@echo "make docs    writes the settings' table into docs/deployment.md, and the reference into docs/sdk.md"
	@echo "make lock    writes requirements/ from pyproject.toml (UPGRADE=1: with the newest versions)"

# On every machine the versions and hashes of requirements/dev.txt, and imqtt itself without dependencies.
$(READY): pyproject.toml requirements/dev.txt
	@test -x $(BIN)/pip || { ./tests/check-python $(PYTHON) && $(PYTHON) -m venv --clear $(VENV); }
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

mosquitto:
	@test -n "$$IMQTT_TEST_MOSQUITTO" || ./deploy/mosquitto/install

redis:
	@./tests/install-redis

demo: $(READY) mosquitto
	@$(BIN)/python -m tests.demo

test: $(READY) mosquitto redis
	$(PYTEST)

verify: $(READY) mosquitto redis
	$(PYTEST) -m 'verify or hypothesis' --hypothesis-profile verify --timeout 1200
	@$(BIN)/python -m tests.verification.chaos
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements/fuzz.txt
	@$(BIN)/python -m tests.verification.fuzz --seconds 120

chaos: $(READY) mosquitto redis
	@$(BIN)/python -m tests.verification.chaos

soak: $(READY) mosquitto redis
	@$(BIN)/python -m tests.verification.soak

fuzz: $(READY)
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements/fuzz.txt
	@$(BIN)/python -m tests.verification.fuzz $(if $(SECONDS),--seconds $(SECONDS))
	@$(BIN)/python -m tests.verification.fuzz.reach

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.protocol.generated
	@$(BIN)/python -m tests.deploy.generated
	@$(BIN)/python -m tests.deploy.locked
	@$(BIN)/python -m tests.client.generated

bench: $(READY) mosquitto redis
	@$(BIN)/python -m bench

proto: $(READY)
	@$(BIN)/python -m tests.protocol.generated --write

docs: $(READY)
	@$(BIN)/python -m tests.deploy.generated --write
	@$(BIN)/python -m tests.client.generated --write

lock: $(READY)
	@$(BIN)/pip install --quiet 'uv>=0.5'
	@$(BIN)/python -m tests.deploy.locked --write $(if $(UPGRADE),--upgrade)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
