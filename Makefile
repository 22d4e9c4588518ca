# Everything a fresh machine needs is python3 (3.11 or newer), a C++ compiler and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := spikingjelly==2.0.0 snntorch==1.0.0 norse==1.1.0
SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cu' 'csrc/*.cpp')

.PHONY: demo test lint format gpu peers clean

demo: $(STAMP)
	$(BIN)/snnfast train digits_twkd --output runs/demo --overwrite

test: $(STAMP) peers
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# On a machine with a GPU, in the environment that is active there: torch with CUDA is not replaced.
gpu:
	$(PYTHON) -m pip install --no-build-isolation --no-deps -e .
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) benchmarks/bench_lif.py --device cuda
	$(PYTHON) benchmarks/bench_block.py --device cuda
	$(PYTHON) benchmarks/bench_distill.py --device cuda
	$(PYTHON) benchmarks/bench_train.py --device cuda

# The peers declare torchvision, which the neurons do not need and which asks for a torch of its own.
peers: $(VENV)/.peers
$(VENV)/.peers: $(STAMP)
	$(BIN)/pip install --quiet --no-deps $(PEERS)
	$(BIN)/pip install --quiet -c constraints.txt h5py loguru nir nirtorch requests scienceplots tensorboard
	touch $@

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info snnfast/*.so
