# Two commands for a fresh machine with Python 3.11, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CEPH := radosgw ceph-mon ceph-osd ceph-common
DATABASES := redis-server postgresql
REGISTRY := docker-registry skopeo umoci apache2-utils
# One environment for each vendor with a requirements/vendor-NAME.txt.
VENDORS := $(patsubst requirements/vendor-%.txt,%,$(wildcard requirements/vendor-*.txt))
READY := $(VENV)/.ready
# One environment for each version of Airflow with a requirements/airflow-VERSION.in, of what there was on its day.
AIRFLOWS := $(patsubst requirements/airflow-%.in,%,$(wildcard requirements/airflow-*.in))
# Tests that need nothing but Python; of these the ones that neither faults nor documents are the matter of; and of these
# what is no vendor's own, which a person waits for.
ALONE := not load and not mounts and not mlflow and not vendor and not oci and not s3 and not stores and not celery and not ui and not e2e and not slow_calls
QUICK := $(ALONE) and not faults and not documents
PLAIN := $(QUICK) and not registries
# What a change breaks most often: the core, the operators, and what the store in a directory promises as all do.
FAST := tests/core tests/conformance tests/operators
# Without byte code on disk each process of the tests would compile them again.
unexport PYTHONDONTWRITEBYTECODE

# What depends on Airflow's version: all that is asked of Airflow itself, the main example in a test's process, and people,
# restarts and kills in a whole Airflow. What hooks and operators do at each registry is the core's, and how triggers share
# their looks is theirs: the same everywhere.
FACING := $(addprefix tests/,cli sensors integration/test_dag_test.py test_assets.py test_compat.py \
	test_deploy_on_new_version.py test_lineage.py test_links.py test_package.py test_provider_info.py test_state.py \
	docs/test_airflow_versions.py \
	$(addprefix hooks/test_,connection_tests.py metrics.py registry_hook.py) \
	$(addprefix operators/test_,arguments.py base.py deployment.py emit.py predict.py storage.py transfer.py) \
	$(addprefix triggers/test_,deployment_trigger.py event_trigger.py model_trigger.py))
WHOLE := $(addprefix tests/e2e/,test_interruptions.py test_watch.py test_state_url.py \
	test_examples.py::test_train_push_wait_pull)

CORE := tests/core tests/conformance
# Where tests of real storages are.
ON_STORAGES := $(addprefix tests/,stores conformance core/registries/modelstore services standins docs/test_storages.py)

# What is tested is the wheel: the checkout, which has the tests, is looked into after all that is installed.
define sync-for-wheel
	$(BIN)/uv pip sync --quiet --python $1/bin/python --require-hashes $2
	pwd > "$$(echo $1/lib/python*/site-packages)/checkout.pth"
endef
define install-wheel
	$(BIN)/uv pip install --quiet --python $1/bin/python --no-deps --reinstall dist/*.whl
	$(BIN)/uv pip check --quiet --python $1/bin/python
endef
with-wheel = PYTHONSAFEPATH=1 $1/bin/python -m pytest --import-mode=append

.PHONY: demo nginx bench bench-quick bench-growth test test-registries test-faults test-documents test-fast test-mounts test-machines mutants reliability test-schedules test-load bindfs test-stores s3-table node test-oci test-celery test-e2e test-slow-calls test-ui test-lowest ceph databases registry chromium screenshots test-vendors test-mlflow bench-transfer bench-s3 bench-stores bench-oci bench-huggingface bench-bentocloud bench-mlflow bench-polling docs sbom licences check format lock lock-airflow wheel clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m "$(PLAIN)" -n auto --dist loadgroup $(PYTEST_ARGS)

# Each vendor's registry, by a stand-in for the vendor's server, and what every registry promises.
test-registries: $(READY)
	$(BIN)/python -m pytest -m "$(QUICK) and registries" -n auto --dist loadgroup $(addprefix tests/,core/registries conformance standins operators) $(PYTEST_ARGS)

# Transfers that are stopped, killed, raced and lied to at each of their steps; bounds of memory and disk.
test-faults: $(READY)
	$(BIN)/python -m pytest -m "$(ALONE) and faults" -n auto --dist loadgroup $(PYTEST_ARGS)

# Every block of code in the documents does what they say, and so do the examples; tables, links and names are true.
test-documents: $(READY)
	$(BIN)/python -m pytest -m "$(ALONE) and documents" -n auto --dist loadgroup \
		tests/docs tests/integration tests/test_example_dags.py tests/test_other_package.py $(PYTEST_ARGS)

test-fast: $(READY)
	$(BIN)/python -m pytest -m "$(PLAIN) and not slow" -k "not s3 and not storages and not multipart" -n auto --dist loadgroup $(FAST) $(PYTEST_ARGS)

# The model store on Ceph, the clouds' emulators and further servers, which are started for it: one suite for all.
test-stores: $(READY) ceph .venv-s3/.ready .azurite/.ready
	$(BIN)/python -m tests.services.ceph_rgw -- \
		$(BIN)/python -m pytest -m "s3 or stores" -n auto --dist loadgroup $(ON_STORAGES) $(PYTEST_ARGS)

# Two machines that mount one directory: two FUSE mounts, whose locks know nothing of each other.
test-mounts: $(READY) bindfs
	$(BIN)/python -m pytest -m mounts tests/mounts $(PYTEST_ARGS)

# Tasks in one bucket, and two machines on one disk, in any order of events: an hour.
test-machines: $(READY)
	MODELSYNC_STEPS=$${MODELSYNC_STEPS:-10000} $(BIN)/python -m pytest -n 0 tests/core/test_machines.py \
		tests/core/registries/modelstore/test_machine.py $(PYTEST_ARGS)

# Two tasks at each registry, their requests in random orders, killed, cancelled, refused, heard of late.
test-schedules: $(READY) .azurite/.ready
	MODELSYNC_STEPS=$${MODELSYNC_STEPS:-2500} $(BIN)/python -m pytest -n 0 tests/conformance/test_schedules.py $(PYTEST_ARGS)

# Many at once, and what is left of them: its figures are in docs/reliability.md.
test-load: $(READY)
	$(BIN)/python -m pytest -m load -n 0 -s tests/load $(PYTEST_ARGS)

# The documents' table of faults, from the tests' marks.
reliability: $(READY)
	$(BIN)/python -m tests.docs.reliability

# Small faults put into the code, which tests have to notice: hours for all. MUTANTS="staging redaction" takes some areas.
mutants: $(READY) .venv-mutants/.ready
	$(BIN)/python -m tests.mutants.run $(MUTANTS)

# The documents' table of storages, by asking each.
s3-table: $(READY) ceph .venv-s3/.ready .azurite/.ready
	$(BIN)/python -m tests.services.ceph_rgw -- $(BIN)/python -m tests.services.storages

# OCI registries: Distribution as Debian has it, and the tools that others use with it.
test-oci: $(READY) registry .venv-oci/.ready
	$(BIN)/python -m pytest -k oci -n auto --dist loadgroup tests/core/registries/oci tests/conformance tests/oci $(PYTEST_ARGS)

# A distributed Airflow: two workers over Redis and PostgreSQL, and a real S3. All are started for the tests.
test-celery: $(READY) ceph databases
	$(BIN)/python -m tests.services.ceph_rgw -- \
		$(BIN)/python -m pytest -m celery tests/services tests/distributed $(PYTEST_ARGS)

ceph: PACKAGES := $(CEPH)
ceph: PROGRAMS := $(CEPH:ceph-common=ceph)
databases: PACKAGES := $(DATABASES)
databases: PROGRAMS := $(DATABASES:postgresql=initdb)
registry: PACKAGES := $(REGISTRY)
registry: PROGRAMS := $(REGISTRY:apache2-utils=htpasswd)
bindfs: PACKAGES := bindfs
bindfs: PROGRAMS := bindfs
node: PACKAGES := nodejs npm
node: PROGRAMS := node npm
nginx: PACKAGES := nginx-light curl openssl
nginx: PROGRAMS := nginx curl openssl
chromium: PACKAGES := chromium pngquant
chromium: PROGRAMS := chromium pngquant
ceph databases chromium bindfs node registry nginx: ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
ceph databases chromium bindfs node registry nginx:
	@PATH="$$PATH:$$(echo /usr/lib/postgresql/*/bin | tr ' ' :)"; \
	for program in $(PROGRAMS); do command -v $$program > /dev/null || missing=1; done; \
	test -z "$$missing" && exit; \
	command -v apt-get > /dev/null || { echo "Install $(PACKAGES) first: there is no apt-get here to do it." >&2; exit 1; }; \
	$(ROOT) apt-get update -qq && \
	$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(PACKAGES)

# Every example in a whole Airflow, which the tests share. One of them has a vendor's command build a bento.
test-e2e: $(READY) .venv-vendors/bentocloud/.ready
	$(BIN)/python -m pytest -m e2e tests/e2e $(PYTEST_ARGS)

# On another Airflow: 3.0, 3.1, 3.2, 3.3 and the newest beta, each with what there was on its day, and the wheel that
# users install.
test-airflow-%: test-facing-%
	$(call with-wheel,.venv-airflow/$*) -m e2e $(WHOLE) $(PYTEST_ARGS)

# Of that what needs no whole Airflow.
test-facing-%: .venv-airflow/%/.ready wheel
	$(call install-wheel,.venv-airflow/$*)
	$(call with-wheel,.venv-airflow/$*) -m "$(PLAIN) and not slow" -n auto --dist loadgroup $(FACING) $(PYTEST_ARGS)

# The core with the oldest release of each dependency that the package takes.
test-lowest: .venv-airflow/lowest/.ready wheel
	$(call install-wheel,.venv-airflow/lowest)
	$(call with-wheel,.venv-airflow/lowest) -m "$(QUICK) and not slow" -n auto --dist loadgroup $(CORE) $(PYTEST_ARGS)

# The core on a newer Python: 3.12, 3.13 and so on, with what all other tests run with.
test-python-%: .venv-python/%/.ready wheel
	$(call install-wheel,.venv-python/$*)
	$(call with-wheel,.venv-python/$*) -m "$(QUICK) and not slow" -n auto --dist loadgroup $(CORE) $(PYTEST_ARGS)

# What ends waits for slow registries, for a quiet machine: sixty tasks and their next tries in one Airflow.
test-slow-calls: $(READY) .venv-vendors/bentocloud/.ready
	$(BIN)/python -m pytest -m slow_calls tests/e2e $(PYTEST_ARGS)

# The connection forms, in a browser. One process: the tests share an Airflow.
test-ui: $(READY) chromium
	$(BIN)/python -m pytest -m ui tests/ui $(PYTEST_ARGS)

# Those of another Airflow, from here: its environment has the wheel, and the browser none of it.
test-ui-%: $(READY) chromium .venv-airflow/%/.ready wheel
	$(call install-wheel,.venv-airflow/$*)
	MODELSYNC_AIRFLOW=$(abspath .venv-airflow/$*/bin/python) $(BIN)/python -m pytest -m ui tests/ui $(PYTEST_ARGS)

screenshots: $(READY) chromium
	$(BIN)/python -m tests.ui.screenshots docs/images

# The stand-in servers are as good as the vendors' own clients find them.
test-vendors: $(READY) $(VENDORS:%=.venv-vendors/%/.ready)
	$(BIN)/python -m pytest -m vendor tests/vendors $(PYTEST_ARGS)

# MLflow's own servers of two generations, and its own client.
test-mlflow: $(READY) .venv-mlflow/3/.ready .venv-mlflow/2/.ready
	$(BIN)/python -m pytest -m mlflow -n auto --dist loadfile tests/mlflow_servers tests/conformance $(PYTEST_ARGS)

# Minutes long, and for a quiet machine.
bench-transfer: $(READY) nginx
	$(BIN)/python benchmarks/transfer.py

# The model store on Ceph's S3 gateway against boto3.
bench-s3: $(READY) ceph
	$(BIN)/python benchmarks/s3.py

# The model store on the clouds' emulators against the vendors' own clients.
bench-stores: $(READY) .venv-stores/.ready .azurite/.ready
	$(BIN)/python benchmarks/stores.py

# An OCI registry against oras-py and skopeo.
bench-oci: $(READY) registry .venv-oci/.ready
	$(BIN)/python benchmarks/oci.py

# A pull from the Hub against its own client.
bench-huggingface: $(READY) .venv-vendors/huggingface/.ready
	$(BIN)/python benchmarks/huggingface.py

# BentoCloud's stand-in against its own client.
bench-bentocloud: $(READY) .venv-vendors/bentocloud/.ready
	$(BIN)/python benchmarks/bentocloud.py

# MLflow's own servers against its own client.
bench-mlflow: $(READY) .venv-mlflow/3/.ready
	$(BIN)/python benchmarks/mlflow.py

# How costs grow with size, files and versions.
bench-growth: $(READY)
	$(BIN)/python benchmarks/growth.py

# All of them in 25 minutes on two cores, and some in 3; figures are left in build/bench as JSON.
bench: $(READY) nginx ceph registry .venv-oci/.ready .venv-stores/.ready .azurite/.ready .venv-vendors/bentocloud/.ready .venv-vendors/huggingface/.ready .venv-mlflow/3/.ready
	$(BIN)/python benchmarks/suite.py

bench-quick: $(READY) nginx
	$(BIN)/python benchmarks/suite.py --quick

# What waiting sensors cost, and the provider's import.
bench-polling: $(READY)
	$(BIN)/python benchmarks/polling.py

# The documents as a site, with the API reference from the docstrings. Fails on links that lead nowhere.
docs: .venv-docs/.ready
	$(PYTHON) scripts/documents_site.py build/site-source
	.venv-docs/bin/mkdocs build --strict --quiet --clean

# A bill of materials, CycloneDX, of an environment that holds what users install: the wheel and what that needs.
sbom: wheel requirements/runtime.txt .venv-sbom/.ready
	rm -rf build/sbom
	$(PYTHON) -m venv --without-pip build/sbom
	$(BIN)/uv pip sync --quiet --python build/sbom/bin/python --require-hashes requirements/runtime.txt
	$(BIN)/uv pip install --quiet --python build/sbom/bin/python --no-deps dist/*.whl
	.venv-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
		--output-reproducible --validate --output-file dist/sbom.cdx.json build/sbom/bin/python

# The licences of what users install; fails for one that nobody has looked at.
licences: $(READY)
	$(BIN)/python scripts/licences.py docs/licences.md

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --group dev --extra amazon --extra azure --extra examples --extra fast --extra gcs --extra pieces --extra signing pyproject.toml --output-file requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --constraints requirements/dev.txt pyproject.toml --output-file requirements/runtime.txt

# The environments of other Airflows: what there was on the day that each was released.
lock-airflow: $(AIRFLOWS:%=lock-airflow-%)
lock-airflow-%: requirements/airflow-%.in $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		$(shell sed -n 's/^# uv: //p' requirements/airflow-$*.in) --group tests \
		$< pyproject.toml --output-file requirements/airflow-$*.txt

wheel: $(READY)
	rm -f dist/*.whl
	$(BIN)/python -m build --no-isolation --wheel --outdir dist .

clean:
	rm -rf $(VENV) .venv-vendors .venv-s3 .venv-stores .azurite .venv-airflow .venv-python .venv-mlflow .venv-oci .venv-docs .venv-sbom .venv-mutants build site .demo dist

# One environment for everything, exactly as locked. uv is only the faster installer.
$(READY): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Vendors' clients cannot share an environment with Airflow.
.venv-vendors/%/.ready: requirements/vendor-%.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# Else make takes them for steps to the tests, and removes them.
.PRECIOUS: .venv-airflow/%/.ready .venv-python/%/.ready

# Each supported version of Airflow.
.venv-airflow/%/.ready: requirements/airflow-%.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(call sync-for-wheel,$(@D),$<)
	touch $@

# Newer Pythons: pyenv's, else whatever uv finds or fetches.
.venv-python/%/.ready: requirements/dev.txt | $(READY)
	test -x $(@D)/bin/python || $(BIN)/uv venv --quiet --python $(lastword $* $(wildcard $(HOME)/.pyenv/versions/$*.*/bin/python)) $(@D)
	$(call sync-for-wheel,$(@D),$<)
	touch $@

# MLflow's servers of each generation, with its client.
.venv-mlflow/%/.ready: requirements/mlflow-%.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# Other clients of OCI registries.
.venv-oci/.ready: requirements/oci-clients.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# What makes a site of the documents.
.venv-docs/.ready: requirements/docs.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# What writes bills of materials.
.venv-sbom/.ready: requirements/sbom.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# What makes mutants.
.venv-mutants/.ready: requirements/mutants.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# Servers that speak S3.
.venv-s3/.ready: requirements/s3-servers.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# Vendors' own clients of object storages.
.venv-stores/.ready: requirements/stores-clients.txt | $(READY)
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# Azure's own emulator of Blob Storage.
.azurite/.ready: requirements/azurite/package.json requirements/azurite/package-lock.json | node
	mkdir -p $(@D)
	cp $^ $(@D)
	cd $(@D) && npm ci --silent --no-audit --no-fund --ignore-scripts
	touch $@
