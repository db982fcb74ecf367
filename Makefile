# make demo   install, export the default guard, check two prompts, compare with PyTorch
# make test   the whole test suite, Python and C++
# make lint   what CI checks besides
# make bench  the benchmark, into bench-results/
# Everything happens in $(VENV); Python 3.11 or newer and a C++ compiler are all that is needed before.

PYTHON ?= python3
VENV ?= .venv
GUARD ?= guard
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

RUN := $(VENV)/bin
# The build runs in the environment itself (no isolation), so that it finds the same tools when it is repeated.
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
SOURCES := pyproject.toml CMakeLists.txt \
  $(shell find aegis_edge export bench kernels -type f -not -path '*/__pycache__/*' -not -name '_native.pyi' 2>/dev/null)

.PHONY: demo test test-python test-cpp test-arm lint types stub format bench clean

demo: $(GUARD)/aegis.json
	$(RUN)/python -m aegis_edge.bench.demo $(GUARD)

test: test-cpp test-python

test-python: $(VENV)/.dev
	$(RUN)/python -m pytest

# With the sanitizers: an access outside of an array or undefined behaviour fails the test.
test-cpp: $(VENV)/.dev
	$(RUN)/cmake -S . -B build/tests -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(RUN)/ninja) \
	  -DAEGIS_TESTS=ON -DAEGIS_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release
	$(RUN)/cmake --build build/tests -j $(JOBS)
	$(RUN)/ctest --test-dir build/tests --output-on-failure

# The same C++ tests for 64-bit ARM, in an emulator: right results, no speed.
test-arm: $(VENV)/.dev
	$(RUN)/cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(RUN)/ninja) \
	  -DAEGIS_TESTS=ON -DCMAKE_TOOLCHAIN_FILE=tests/cpp/aarch64.cmake
	$(RUN)/cmake --build build/aarch64 -j $(JOBS)
	$(RUN)/ctest --test-dir build/aarch64 --output-on-failure -j $(JOBS)

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	git ls-files 'kernels/*.h' 'kernels/*.c' 'kernels/*.cc' 'tests/cpp/*.h' 'tests/cpp/*.cc' 'bench/*.cc' | xargs $(RUN)/clang-format --dry-run --Werror
	$(MAKE) types
	$(RUN)/python -m nanobind.stubgen -q -m aegis_edge._native -o build/_native.pyi
	diff -u aegis_edge/_native.pyi build/_native.pyi

# mypy follows folders, not the mapping of the build: here the package is laid out as it is installed.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/aegis_edge
	ln -s $(CURDIR)/aegis_edge/* $(CURDIR)/export $(CURDIR)/bench build/types/aegis_edge/
	ln -s $(CURDIR)/kernels/triton build/types/aegis_edge/triton
	cd build/types && $(abspath $(RUN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir ../.mypy_cache

stub: $(VENV)/.dev
	$(RUN)/python -m nanobind.stubgen -q -m aegis_edge._native -o aegis_edge/_native.pyi

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
	git ls-files 'kernels/*.h' 'kernels/*.c' 'kernels/*.cc' 'tests/cpp/*.h' 'tests/cpp/*.cc' 'bench/*.cc' | xargs $(RUN)/clang-format -i

bench: $(VENV)/.dev $(GUARD)/aegis.json
	$(RUN)/aegis-edge bench --guard $(GUARD) --out bench-results

# A guard is stale when its adapter, or how guards are made, has changed.
$(GUARD)/aegis.json: $(VENV)/.export $(shell find export aegis_edge/adapters -type f -not -path '*/__pycache__/*')
	$(RUN)/aegis-edge export --out $(GUARD) --force

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aegis-edge needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet $(BUILD_TOOLS)
	touch $@

# Editable, but the list of files is read once: a new file needs the install again, which is quick.
$(VENV)/.export: $(VENV)/.python $(SOURCES)
	$(RUN)/python -m pip install --quiet --no-build-isolation --editable '.[export]'
	touch $@

$(VENV)/.dev: $(VENV)/.python $(SOURCES)
	$(RUN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	# For its output parsers alone, which the tests feed: what else it needs is left out.
	$(RUN)/python -m pip install --quiet --no-deps nemoguardrails==0.24.0
	touch $@ $(VENV)/.export

clean:
	rm -rf build dist $(VENV) $(GUARD) bench-results
