# make run      serve the hello example on an embedded broker
# make test     run the tests, but for those of `make check` and `make long`
# make fast     run the tests that take less than a quarter of a second and start no processes
# make check    check format, lint, types, the rooms and the documentation's tables
# make house    print the structure of the code: sizes, rooms, imports between them
# make tables   write the tables of rooms and of the files of a request into docs/architecture.md, and that of metrics
# make docs     build the documentation as a site in build/site, and check its links
# make hooks    check every commit before it is made (see .pre-commit-config.yaml)
# make long     run the tests that take so long that `make test` leaves them out
# make fuzz     feed random bytes to every reader of foreign bytes, for FUZZ_SECONDS each (60)
# make fuzz-short   do the same for a minute in all, without any tool
# make mutants  show which mistakes in the Lua functions the state machine's tests find by themselves
# make bench    measure how costs grow and what others take, with plots in build/benchmarks; QUICK=1 and ONLY="depth width" for less
# make bench-docs   the same into docs/performance.md, in about twelve minutes
# make dist     build the distributions of the last commit into dist/, and check them
# make constraints   write which versions of libraries images are built with, the newest that fit
# make matrix   try all versions of Python, libraries and servers that this machine has, and write the table in README.md
# make release  build and check a release in dist/: distributions, notes, parts and licences, digests; DRAFT=1 to try it
# make chaos    run the whole fault matrix, one fault at a time
# make chaos-soak   inject faults at random for CHAOS_SECONDS (900); CHAOS_SEED repeats a run
# make test-stack   run docker-compose.yml, and the stack that `qserve compose` writes for another application, with real containers
# make test-stack-if-possible   do the same where containers can be started, and say why where they cannot

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
FUZZ_SECONDS ?= 60
CHAOS_SECONDS ?= 900
CHAOS_SEED ?= 0

.PHONY: run test fast long bench bench-docs chaos chaos-soak check docs house tables hooks format fuzz fuzz-short mutants dist release constraints matrix test-stack test-stack-if-possible clean

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("qserve needs Python 3.11 or later, for example: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run: $(VENV)/installed
	@echo 'When it is ready, send it a request from another terminal:'
	@echo '  curl -X POST http://127.0.0.1:$(PORT)/ -H "Content-Type: application/json" -d '"'"'{"language": "spanish", "name": "Dora"}'"'"
	@$(BIN)/qserve run hello:language_classifier --app-dir examples --port $(PORT)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest --ignore tests/architecture --ignore tests/typing

fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --ignore tests/architecture --ignore tests/typing -m "not slow and not long and not chaos and not priority and not soak"

$(VENV)/installed-schemas: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[schemas,objects]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks $(ONLY) $(if $(QUICK),--quick)

bench-docs: $(VENV)/installed-bench
	$(BIN)/python benchmarks $(ONLY) --seconds 2 --docs

$(VENV)/installed-release: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[release]'
	@touch $@

dist: $(VENV)/installed-release
	$(BIN)/python tools/distributions.py

release: $(VENV)/installed-release
	$(BIN)/python tools/release.py $(if $(DRAFT),--draft)

constraints: $(VENV)/installed
	$(BIN)/python tools/constraints.py

matrix:
	$(PYTHON) tools/matrix.py

long: $(VENV)/installed-schemas $(VENV)/installed-bench $(VENV)/installed-release $(VENV)/installed-site
	$(BIN)/python -m pytest -n0 -m long

chaos: $(VENV)/installed-test
	$(BIN)/python -m pytest -n0 -m "row or chaos or priority"

chaos-soak: $(VENV)/installed-test
	CHAOS_SECONDS=$(CHAOS_SECONDS) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m pytest -n0 -s -m soak tests/faults

check: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture tests/typing

house:
	@$(PYTHON) tools/house.py

tables: $(VENV)/installed-test
	$(BIN)/python tools/house.py --write
	$(BIN)/python tools/request_walk.py --write
	$(BIN)/python tools/metrics_table.py

$(VENV)/installed-site: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[site]'
	@touch $@

docs: $(VENV)/installed-site
	$(BIN)/python tools/docs_site.py

hooks: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check pre-commit
	$(BIN)/pre-commit install

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed-fuzz: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

fuzz: $(VENV)/installed-fuzz
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

fuzz-short: $(VENV)/installed-test
	PYTHONPATH=tests/fuzz $(BIN)/python tests/fuzz/plain.py --seconds 60

mutants: $(VENV)/installed-test
	PYTHONPATH=tests/broker:tests/support $(BIN)/python -m pytest -p mutants -p no:cloudcoil -o addopts= --tb=no -q -m "not long" tests/broker/test_state_machine.py

test-stack: $(VENV)/installed-test
	$(BIN)/python tests/containers/stack.py

test-stack-if-possible: $(VENV)/installed-test
	timeout -k 60 1500 $(BIN)/python tests/containers/stack.py --if-possible

clean:
	rm -rf $(VENV) build dist *.egg-info
