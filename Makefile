# Every target makes what it needs; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(wildcard proto/holdfast/v1/*.proto)
MADE := metrics limits proto cli
CLUSTER_PROTOS := $(wildcard proto/holdfast_cluster/*/*.proto)

.PHONY: help run demo test test-slow check coverage tools container-tools bench sim model proto proto-fresh clean docs reference
help:
	@echo "make run    start the property example on a local cluster; it stays up until Ctrl-C"
	@echo "make demo   the same, but ends by itself"
	@echo "make test   the tests with real etcd and real processes, and the simulators; unit tests are in make check"
	@echo "make test-slow  the long ones: etcd and disks that go back, full disks, other kinds"
	@echo "make check  format, lint, types, import layers, generated code fresh, unit and property tests"
	@echo "make coverage  what unit and property tests reach; it fails below the floor in pyproject.toml"
	@echo "make bench  calls per second on this machine; BENCH='--json --seconds 5' passes options on"
	@echo "make sim    simulated clusters under faults; SEEDS=100000 for more, a seed again with: .venv/bin/python -m tests.sim [cluster|effects] SEED"
	@echo "make model  all orders of events in small worlds of replicas; WORLDS=1100000"
	@echo "make docs   the documents as a site, in build/site; a link that leads nowhere fails"
	@echo "make reference  write the pages of docs/reference that are made from the code"
	@echo "make proto  regenerate the code from proto/"

.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: .venv/dev
	$(BIN)/python -m examples.property.demo --stay

demo: .venv/dev
	$(BIN)/python -m examples.property.demo

check: .venv/dev proto-fresh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/python deploy/grafana/build.py --check
	$(BIN)/python deploy/prometheus/build.py --check
	$(BIN)/python docs/check.py
	$(BIN)/python docs/way_back.py --check
	@for page in $(MADE); do $(BIN)/python docs/reference_$$page.py --check || exit 1; done
	$(BIN)/pytest tests/unit tests/property examples

coverage: .venv/dev
	@rm -rf .venv/coverage && mkdir -p .venv/coverage
	$(BIN)/coverage run -m pytest tests/unit tests/property examples -n 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test: .venv/dev tools
	@# Real processes mostly wait: two files of them run at a time, and the simulators with what they leave.
	@nice -n 19 $(BIN)/pytest tests/sim tests/model --durations 5 > .venv/sim.log 2>&1 & sim=$$!; \
	$(BIN)/pytest tests/cluster -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations 10; cluster=$$?; \
	wait $$sim; sim=$$?; cat .venv/sim.log; exit $$((cluster + sim))

test-slow: .venv/dev tools container-tools
	$(BIN)/pytest tests/cluster -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations 10

.venv/docs: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

reference: .venv/dev
	@for page in $(MADE); do $(BIN)/python docs/reference_$$page.py || exit 1; done
	$(BIN)/python docs/way_back.py

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tools:
	@# A real Prometheus for the tests that ask for one; where it cannot be installed they say that they are skipped.
	@command -v promtool > /dev/null || $(call install,prometheus)

container-tools:
	@# What builds and runs containers without a daemon, for the test that asks for it.
	@{ command -v podman && command -v buildah && command -v mmdebstrap && command -v catatonit; } > /dev/null || \
	$(call install,buildah podman runc mmdebstrap catatonit)

define install
[ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $(1); } > /dev/null 2>&1 || \
	echo "could not be installed: $(1)"
endef

bench: .venv/dev
	$(BIN)/holdfast bench $(BENCH)

sim: .venv/dev
	SEEDS=$(or $(SEEDS),10000) $(BIN)/pytest -n auto tests/sim

model: .venv/dev
	$(BIN)/python -m tests.model --worlds $(or $(WORLDS),1100000)

define generate
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(1)/sdk --pyi_out=$(1)/sdk --grpc_python_out=$(1)/sdk $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(1)/cluster --pyi_out=$(1)/cluster --grpc_python_out=$(1)/cluster $(CLUSTER_PROTOS)
endef

proto: .venv/dev
	$(call generate,.)

proto-fresh: .venv/dev
	@rm -rf .venv/proto && mkdir -p .venv/proto/sdk .venv/proto/cluster
	@$(call generate,.venv/proto)
	@for f in $$(cd .venv/proto && find . -name '*_pb2*'); do \
		cmp -s $$f .venv/proto/$$f || { echo "$$f is not what proto/ says: run make proto"; exit 1; }; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
