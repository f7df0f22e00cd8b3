# One word for each thing to do. Every target makes what it needs first and can be run again.
#   make demo    train a language model with each optimizer (FAST=1: short; OPT="adamw soap": these)
#   make test    all tests (Python, C++ under sanitizers, CUDA kernels on the processor)
#   make cuda-compile  every CUDA kernel through nvcc; registers; no spills
#   make coverage-kernels  which lines of the CUDA kernels the tests run
#   make lint    formatting, style and types
#   make bench   optimizer steps beside torch's Muon and AdamW and other packages; cost of p="auto"
#   make test-abi  the same binary under the newest torch
#   make wheel   a wheel for every GPU of a release, into dist/
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CXX ?= g++
BUILD := build
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Kernels for GPUs take minutes to compile: only where there is one, unless asked for.
ifneq ($(shell nvidia-smi -L >/dev/null 2>&1 && echo found),found)
export SCHATTOR_CUDA ?= 0
endif

.PHONY: help demo test test-python test-cpp test-abi lint bench build wheel clean
help:
	@sed -n '2,10s/^# *//p' Makefile

# The stamp is written last, so an interrupted installation is taken up again.
$(VENV)/ready: constraints.txt pyproject.toml
	@echo "== making the environment $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --no-compile -c constraints.txt torch numpy setuptools pybind11
	$(PY) -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[test]' clang-format
	touch $@

build: $(VENV)/ready
	@echo "== building the C++ kernels (only what changed)"
	$(PY) setup.py -q build_ext --inplace

demo: build
	$(PY) examples/character_gpt/run.py $(if $(FAST),--fast) $(if $(OPT),--optimizers "$(OPT)")

test: test-cpp test-emulation test-python

# Threads that wait without spinning: on a busy machine spinning makes small steps many times slower.
test-python: build
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -q --cov=schattor --cov-report=term

CPU_SOURCES := $(wildcard csrc/cpu/*.cpp)
CPU_HEADERS := $(wildcard csrc/cpu/*.h csrc/cpu/*.inc tests/*.h tests/cpu/*.h)
CPU_TESTS := $(patsubst tests/cpu/test_%.cpp,$(BUILD)/cpu/test_%,$(wildcard tests/cpu/test_*.cpp))
SANITIZE := -std=c++17 -O1 -g -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra \
  -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc/cpu -Itests/cpu -DSCHATTOR_EMULATE_AMX \
  -DSCHATTOR_EMULATE_HALVES -Wno-psabi

$(BUILD)/cpu/%.o: csrc/cpu/%.cpp $(CPU_HEADERS)
	@mkdir -p $(@D)
	@echo "  compiling $<"
	@$(CXX) $(SANITIZE) -c $< -o $@
$(BUILD)/cpu/test_%: tests/cpu/test_%.cpp $(CPU_SOURCES:csrc/cpu/%.cpp=$(BUILD)/cpu/%.o)
	@echo "  building $@"
	@$(CXX) $(SANITIZE) $^ -o $@ -pthread
.PRECIOUS: $(BUILD)/cpu/%.o

# Every instruction set that this processor has, under the address and undefined-behaviour
# sanitizers; AMX tiles and vectors of half precision in software.
test-cpp:
	@echo "== C++ kernels under sanitizers"
	@$(MAKE) --no-print-directory -j2 $(CPU_TESTS)
	@set -e; for t in $(CPU_TESTS); do echo $$t; $$t; done

include tests/emulation/emulation.mk tests/emulation/compile.mk
include tests/emulated/emulated.mk

wheel: $(VENV)/ready
	@echo "== building a wheel for every GPU of a release (minutes)"
	SCHATTOR_CUDA=1 TORCH_CUDA_ARCH_LIST=all $(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .

# A wheel built with the oldest torch must serve the newest.
NEWEST := .venv-newest
test-abi: build
	@echo "== the same binary under the newest torch"
	rm -rf $(BUILD)/wheel $(NEWEST)
	$(PY) -m pip wheel -q --no-build-isolation --no-deps -w $(BUILD)/wheel .
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install -q --no-compile torch numpy pytest hypothesis $(BUILD)/wheel/*.whl
	cd tests && ../$(NEWEST)/bin/python -c "import torch, schattor; print('torch', torch.__version__)"
	cd tests && PYTHONPATH=optim ../$(NEWEST)/bin/python -m pytest -q -c /dev/null -p no:cacheprovider \
	  --rootdir=. --import-mode=importlib test_ops.py test_factorisations.py test_functional.py optim/test_sharded.py \
	  adaptive/test_products.py
	rm -rf $(NEWEST)

lint: $(VENV)/ready
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inc' 'csrc/*.cu' 'csrc/*.cuh' \
	  'tests/*.h' 'tests/*.cpp' 'tests/*.cu' 'benchmarks/*.cu' 'benchmarks/*.h')
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: build
	$(PY) benchmarks/bench_step.py
	$(PY) benchmarks/bench_family.py
	$(PY) benchmarks/bench_factors.py
	$(PY) benchmarks/bench_auto.py

clean:
	rm -rf $(BUILD) schattor/*.so *.egg-info
