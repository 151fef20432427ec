# Two commands for a fresh machine with Python 3.11, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CEPH := radosgw ceph-mon ceph-osd ceph-common
VENDOR_BENTOCLOUD := .venv-vendors/bentocloud
READY := $(VENV)/.ready

.PHONY: demo test test-s3 ceph test-vendors bench-transfer bench-polling check format lock wheel clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m "not vendor and not s3" -n auto --dist loadfile --cov --cov-report=term $(PYTEST_ARGS)

# The model store on a real S3, which is started for them.
test-s3: $(READY) ceph
	$(BIN)/python -m tests.services.ceph_rgw -- \
		$(BIN)/python -m pytest -m s3 -n auto --dist loadfile $(PYTEST_ARGS)

ceph: ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
ceph:
	@for program in $(CEPH:ceph-common=ceph); do command -v $$program > /dev/null || missing=1; done; \
	test -z "$$missing" && exit; \
	command -v apt-get > /dev/null || { echo "Install Ceph's $(CEPH) first: there is no apt-get here to do it." >&2; exit 1; }; \
	$(ROOT) apt-get update -qq && \
	$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(CEPH)

# The stand-in servers are as good as the vendors' own clients find them.
test-vendors: $(READY) $(VENDOR_BENTOCLOUD)/.ready
	$(BIN)/python -m pytest -m vendor tests/vendors $(PYTEST_ARGS)

# Minutes long, and for a quiet machine. Needs nginx, curl and openssl.
bench-transfer: $(READY)
	$(BIN)/python benchmarks/transfer.py

# What waiting sensors cost, and the provider's import.
bench-polling: $(READY)
	$(BIN)/python benchmarks/polling.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --group dev --extra amazon --extra examples pyproject.toml --output-file requirements/dev.txt

wheel: $(READY)
	$(BIN)/python -m build --no-isolation --wheel --outdir dist .

clean:
	rm -rf $(VENV) .venv-vendors .demo dist

# One environment for everything, exactly as locked. uv is only the faster installer.
$(READY): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Vendors' clients cannot share an environment with Airflow.
$(VENDOR_BENTOCLOUD)/.ready: requirements/vendor-bentocloud.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(@D)/bin/python --require-hashes requirements/vendor-bentocloud.txt
	touch $@
