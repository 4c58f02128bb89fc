# `make study` and `make test` work from a fresh clone: each sets up .venv first, once per change of its inputs.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
OUT    ?= out
CLIPS  ?=
TESTS  ?= tests
EXAMPLES ?= 900
SEED   ?= 0
OLDEST  = $(addprefix tests/test_,hooks.py hook_state.py habits.py weight_views.py cache.py parity.py results.py store.py \
            films.py video_files.py load.py plotting.py interventions.py sampler.py lens.py)
# CPU runs of these small models are fastest with as many processes as cores and one thread each.
WORKERS ?= auto

.PHONY: study test fuzz oldest check format notebooks bench constraints clean

study: $(VENV)/.core
	$(VENV)/bin/vdinterp study ablations tiny-crafter tiny-induction $(if $(CLIPS),--n-clips $(CLIPS)) --out $(OUT)/ablations

test: $(VENV)/.dev            ## includes the notebooks (tests/test_notebooks.py)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

fuzz: $(VENV)/.dev            ## bad input by the thousand through every door; `make test` tries a sample
	PYTHONPATH=tests $(PY) -m fuzz --examples $(EXAMPLES) --seed $(SEED)

oldest: $(VENV)/.dev          ## the lowest versions that pyproject.toml allows, TransformerLens 2.16 among them (3 GB)
	$(PIP) install --quiet uv
	$(VENV)/bin/uv venv --quiet --clear build/oldest
	$(VENV)/bin/uv pip install --quiet --python build/oldest/bin/python --resolution lowest-direct \
	  -c tools/oldest.txt -e ".[probes,notebook]" pytest hypothesis
	VDINTERP_TYPECHECK=0 build/oldest/bin/python -m pytest -o filterwarnings=default -W ignore $(OLDEST)

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

notebooks: $(VENV)/.dev       ## run every notebook from its text form and keep the executed copy
	$(PY) tools/run_notebooks.py $(OUT)/notebooks

bench: $(VENV)/.dev $(VENV)/.bench
	$(PY) benchmarks/import_time.py
	$(PY) benchmarks/forward.py
	$(PY) benchmarks/attention_stats.py
	$(PY) benchmarks/patching.py

constraints: $(VENV)/.dev     ## pin what is installed now
	$(PY) tools/pin_constraints.py > constraints.txt.new && mv constraints.txt.new constraints.txt

clean:
	rm -rf $(VENV) $(OUT) build dist

$(PY):
	$(PYTHON) -c 'import sys; sys.exit("vdinterp needs Python 3.10 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  rm -rf $(VENV); \
	  $(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }

$(VENV)/.core: pyproject.toml constraints.txt | $(PY)
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	$(PIP) install --quiet -c constraints.txt -e ".[dev,notebook,export,probes,crafter,ray]"
	touch $@ $(VENV)/.core

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/.dev
	$(PIP) install --quiet -c constraints.txt -e ".[bench]"
	touch $@
