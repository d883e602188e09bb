# Everything runs from .venv, which the stamp below makes. `make demo` is the shortest way in.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
OUTPUTS := outputs

.PHONY: demo serve test test-clients check format docs parity bench clean

demo: $(STAMP)
	$(BIN)/safelight generate --prompt "a red circle moving left on a black background" \
	  --output-path $(OUTPUTS) --output-file-name clip.mp4
	$(BIN)/safelight generate --prompt "a blue square on a white background" --num-frames 1 \
	  --output-path $(OUTPUTS) --output-file-name picture.png

serve: $(STAMP)
	$(BIN)/safelight serve

test: $(STAMP)
	$(BIN)/python -m pytest

# Other clients, each installed into ~/.cache/safelight-tests; writes docs/clients.md. Takes minutes.
test-clients: $(STAMP)
	cd test && ../$(BIN)/python -m tools.clients --write

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q test/unit/test_layering.py

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The documents that are generated from the code; tests hold them current.
docs: $(STAMP)
	cd test && ../$(BIN)/python -m tools.state_diagram --write
	cd test && ../$(BIN)/python -m tools.config_reference --write
	cd test && ../$(BIN)/python -m tools.module_list --write
	cd test && ../$(BIN)/python -m tools.foreign_flags --write
	cd test && ../$(BIN)/python -m tools.model_table --write
	cd test && ../$(BIN)/python -m tools.coverage --write

# The tables of docs/numerics.md and docs/communication.md; starts rank processes, takes minutes.
parity: $(STAMP)
	cd test && OMP_NUM_THREADS=1 ../$(BIN)/python -m tools.parity --write
	cd test && OMP_NUM_THREADS=1 ../$(BIN)/python -m tools.communication --write

bench: $(STAMP)
	$(BIN)/python -m benchmark

clean:
	rm -rf $(OUTPUTS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find python test benchmark -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
