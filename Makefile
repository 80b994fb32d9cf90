# `make demo` and `make test` set up a fresh machine that has Python 3.11+ and make.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: demo cifar10 lab rival tensorboard screenshots test check audit lab-check bench-check ray-check gpu-check clean

# What is finished stays; `make demo FLAGS=--overwrite` starts anew.
demo cifar10 lab rival: FLAGS = --resume
demo cifar10 lab: $(VENV)/installed
	$(BIN)/python main.py --preset $@ $(FLAGS)
	$(BIN)/python make_sample_data.py --preset $@ $(FLAGS)
	$(BIN)/python student_train.py --preset $@ $(FLAGS)
	$(BIN)/python main.py --preset $@ --student-network True $(FLAGS)

# The fair rival of a finished run: `make rival RUN=runs/demo` trains its first network on the labels
# alone, for as many images as the run processed, into runs/demo-rival.  Neither make nor a shell
# reads what RUN says.
unexport RUN
rival: export RIVAL_OF := $(value RUN)
rival: $(VENV)/installed
	@$(BIN)/python -c "from stages.whole_run import train_rival; train_rival()" "$$RIVAL_OF" $(FLAGS)

tensorboard: $(VENV)/installed
	$(BIN)/tensorboard --logdir runs

# The pictures of the README, from runs/demo.  Needs chromium and chromium-driver.
screenshots: $(VENV)/installed-dev
	$(BIN)/python tests/screenshots.py runs/demo docs/pictures

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow"

# Known holes of the packages that requirements.txt asks for, from pypi.org's advisories.
audit: $(VENV)/installed-dev
	@if $(BIN)/python -c "import urllib.request as u; u.urlopen('https://pypi.org/pypi/pip/json', timeout=10)" 2>/dev/null; \
	then $(BIN)/pip-audit --progress-spinner off -r requirements.txt; \
	else echo "audit skipped: pypi.org does not answer, and it has the advisories"; fi

# The lab's solutions, from top to bottom, as a student would run them.
lab-check: $(VENV)/installed-dev
	@echo "The lab's solution notebook runs from top to bottom: nine exercises, about 180"
	@echo "processor seconds, 3 minutes on a core that does nothing else.  It is silent until its end."
	rm -rf runs/lab-check
	LAB_RUN=runs/lab-check $(BIN)/jupyter execute lab/solutions.ipynb
	@echo "All cells have run, all checks say right.  The slides:"
	$(BIN)/python -m lab.slides runs/lab-check/seed-2

# Does every benchmark run, and does it measure what it says?  Under a minute; no figures.
bench-check: $(VENV)/installed-dev
	$(BIN)/python -m pytest benchmarks

# Step 2 on Ray, and object storage on loopback: the extra [ray] is 300 MB, so `make test` leaves
# these tests out where it is not installed.
ray-check: $(VENV)/installed-dev
	$(BIN)/python -m pip install -q '.[ray]' 'moto[server]'
	$(BIN)/python -m pytest tests/test_ray.py

# On a machine with a GPU, again and again: each call takes ten minutes at most and goes on where the
# last one stopped.  It uses the Python at hand and that one's torch.  See benchmarks/gpu_check.py.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(FLAGS)

$(VENV)/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
