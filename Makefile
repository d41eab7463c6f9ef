# `make` lists the targets. Everything happens in .venv, which `make install` makes.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := -e "packages/lens-core[diffusion,images]" -e "packages/lens-caption[openai]" \
            -e packages/lens-train -e packages/lens-serve
SOURCES := packages/*/pyproject.toml examples/lens-acme/pyproject.toml constraints.txt dev-requirements.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test soak lint types docs bench all

help: ## List the targets.
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .stamps/dev ## Make .venv and install everything for development.

demo: .stamps/run ## From nothing to two trained models and a report, on the CPU.
	$(BIN)/lens run examples/quickstart/pipeline.yaml

test: .stamps/dev ## The whole test suite, but for gpu, network and soak.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

soak: .stamps/dev ## Full-size kill, fuzz, load and soak runs.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --timeout 7200

lint: .stamps/dev ## Style, formatting and import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .stamps/dev ## Types.
	$(BIN)/mypy

docs: .stamps/dev ## Build the site; fails when a generated page is stale.
	$(BIN)/python tools/generate_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .stamps/dev ## The benchmarks of a CPU; each prints ratios and writes JSON to runs/benchmarks.
	$(BIN)/python benchmarks/train_step.py --out runs/benchmarks/train_step.json
	$(BIN)/python benchmarks/train_padded.py --threads 1 --out runs/benchmarks/train_padded-256.json
	$(BIN)/python benchmarks/train_padded.py --mix 27-buckets --samples 54 --threads 1 \
	  --out runs/benchmarks/train_padded-27-buckets.json
	$(BIN)/python benchmarks/packing.py --out runs/benchmarks/packing.json
	$(BIN)/python benchmarks/stage_start.py --out runs/benchmarks/stage_start.json
	$(BIN)/python benchmarks/data_path.py --sizes 64:64 512:256 --latents 256 1024 --out runs/benchmarks/data_path.json
	$(BIN)/python benchmarks/inference.py --out runs/benchmarks/inference-nano.json
	$(BIN)/python benchmarks/inference.py --preset 100m --repeats 3 --out runs/benchmarks/inference-100m.json
	$(BIN)/python benchmarks/load_memory.py --out runs/benchmarks/load_memory.json
	$(BIN)/python benchmarks/quantize.py --out runs/benchmarks/quantize.json
	$(BIN)/python benchmarks/filters.py --out runs/benchmarks/filters.json
	$(BIN)/python benchmarks/caption.py --images 2000 --out runs/benchmarks/caption.json
	$(BIN)/python benchmarks/png.py --out runs/benchmarks/png.json
	$(BIN)/python benchmarks/serve_policies.py --out runs/benchmarks/serve_policies.json
	$(BIN)/python benchmarks/serve_tiers.py --out runs/benchmarks/serve_tiers.json
	$(BIN)/python benchmarks/serve.py policies --minutes 3 --out runs/benchmarks/serve-load.json

all: lint types docs test ## What CI runs.

.venv:
	$(PYTHON) -m venv .venv

.stamps/run: $(SOURCES) | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PACKAGES)
	@mkdir -p .stamps && touch $@

.stamps/dev: .stamps/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r dev-requirements.txt \
	  -e "packages/lens-core[faiss,heif,onnx,s3,testing,vision]" -e "packages/lens-caption[lance,language,ray]" \
	  -e "packages/lens-serve[c2pa,openai,otel,ray]" -e examples/lens-acme
	@touch $@
