"""Every check of the project, one session each; `nox -l` lists them.

`.ci/run` calls the sessions that gate a change; `nox -s deep` runs what takes long.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "typing", "tests", "tests_min", "coverage", "package", "docs", "bench"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
# pyenv puts only shims on PATH. The shim of a version that is not the global
# one exits 127, so nox would report the interpreter as missing and skip it.
if root := os.environ.get("PYENV_ROOT"):
    bins = sorted(map(str, Path(root, "versions").glob("3.*/bin")))
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *bins])
# Newer interpreters than the classifiers name are tried where they are found.
NEWER = [version for version in ("3.14", "3.15") if shutil.which(f"python{version}")]

SERVICES = "./reference_services"
#: Where `package` leaves what it built.
DIST = Path(".nox", "dist")

#: An npm package that carries the source of SQLite 3.53, and its digest.
SQLITE_SOURCE = "better-sqlite3@12.11.1"
SQLITE_SHA256 = "ebf0ed75a7a59dbcb3b24bbd014ef49d9f15bc328e4adcbf516f2a8fadfa2835"

#: Rooms whose tests must find planted faults: files under `src/healthobs`, and the tests that guard them.
MUTATED = {
    "_callables.py": "test_callables* test_decorators*",
    "http.py": "test_exchange test_front_ends test_wsgi* test_asgi test_headers test_tenancy test_taking_over* test_series_from_zero",
    "metrics/*.py": "test_metrics* test_tenancy test_series_from_zero",
    "health/*.py": "test_health test_health_*",
    "redaction/[!c]*.py": "test_redaction*",  # canary.py is data
    "audit/[!p]*.py": "test_audit*",
    "audit/postgres*.py": "test_audit_postgres test_audit_tamper_postgres test_audit_subjects_postgres",
}
#: Rooms that only tests marked `server` can prove. Each fault starts a server, so half as many are drawn.
MUTATED_ON_SERVERS = ("audit/postgres*.py",)


def _locked(session: nox.Session, lock: str = "dev") -> None:
    """Install a lock, then our two distributions without resolving anything."""
    session.install("--require-hashes", "-r", f"requirements/{lock}.lock")
    session.install("--no-deps", "--no-build-isolation", ".", SERVICES)


def _groups(*names: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def _run_tests(session: nox.Session, *measured: str) -> None:
    session.run(*(measured or ("python",)), "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session(python=[*PYTHONS, *NEWER])
def tests(session: nox.Session) -> None:
    """Run the whole suite against the newest versions that resolve."""
    session.install(*_groups("tests"), ".[all]", SERVICES)
    _run_tests(session)


@nox.session(python=PYTHONS[1], requires=["package"])
def tests_min(session: nox.Session) -> None:
    """Run the whole suite against the wheels, with `src` out of reach and the lowest versions that the metadata allows.

    Which lines and branches ran is measured.
    """
    library, services = sorted(map(str, DIST.resolve().glob("*.whl")))
    ours = [part for name in ("healthobs", "reference-services") for part in ("--reinstall-package", name)]
    wheels = (f"{library}[all]", services)
    session.install("--resolution=lowest-direct", *ours, *_groups("tests"), *wheels)
    bare = Path(session.create_tmp(), "bare").resolve()
    shutil.rmtree(bare, ignore_errors=True)
    ignore = shutil.ignore_patterns(".git", ".nox", ".venv*", "src", "__pycache__", ".hypothesis", ".*_cache")
    shutil.copytree(".", bare, ignore=ignore)
    session.env["COVERAGE_FILE"] = str(Path(".coverage").resolve())
    with session.chdir(bare):
        _run_tests(session, "coverage", "run")


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Combine what `tests_min` measured and hold the bar of `pyproject.toml`."""
    session.run(sys.executable, "-m", "coverage", "combine", external=True)
    session.run(sys.executable, "-m", "coverage", "report", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, the import rules, and that the lock names no index."""
    _locked(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy and pyright in strict mode, and that the public API is fully typed."""
    _locked(session)
    session.run("mypy", "src", "reference_services/src", "tests/typing", "noxfile.py", "bench")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "healthobs")


@nox.session
def package(session: nox.Session) -> None:
    """Build both distributions, and check them."""
    session.install(*_groups("package"), "hatchling")
    shutil.rmtree(DIST, ignore_errors=True)
    for project in (".", SERVICES):
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(DIST.resolve()), project)
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    session.run("check-wheel-contents", *map(str, DIST.glob("*.whl")))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; every unresolved reference and warning is an error."""
    _locked(session)
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-E", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Print the tables against bare Flask, the hand-written floor and the peers; exact counts gate, times with `-- --times`."""
    _locked(session, "bench")
    must = {"HEALTHOBS_MUST_HAVE_PEERS": "1"}
    session.run("python", "-m", "bench", *session.posargs, env=must)
    session.run("python", "-m", "bench.redaction", *session.posargs, env=must)


@nox.session
def peers(session: nox.Session) -> None:
    """Show each known defect of a peer, a strict expected failure there; adopt existing applications."""
    _locked(session, "peers")
    # Its metadata binds prometheus-client below 0.18; its code works with ours.
    session.install("--no-deps", "--require-hashes", "-r", "requirements/peers-unbound.txt")
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/peers",
        "tests/adoption",
        *session.posargs,
        env={"HEALTHOBS_MUST_HAVE_PEERS": "1"},
    )


@nox.session
def breaks(session: nox.Session) -> None:
    """Run the demo green, then with every planted fault, each red exactly where declared."""
    _locked(session, "run")
    session.run("healthobs", "demo", "--break", "all")


@nox.session(python="3.13")
def images(session: nox.Session) -> None:
    """Build every service's image on the image's own Python, and run it hardened; find every planted fault."""
    _locked(session)
    required = {"HEALTHOBS_MUST_HAVE_SERVERS": "1"}  # all skipped is not green
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-m",
        "deep",
        "reference_services/tests/images",
        *session.posargs,
        env=required,
    )


@nox.session
def servers(session: nox.Session) -> None:
    """Run the tests marked `server`: gunicorn, uvicorn, PostgreSQL, system calls, processes that are killed."""
    _locked(session)
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",  # they mostly wait
        "-m",
        "server",
        "tests",
        "reference_services/tests",
        "--ignore=reference_services/tests/fuzz",
        "--timeout",
        "300",
        *session.posargs,
    )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the five services over HTTP; first find every planted bug, then find nothing."""
    _locked(session)
    session.run(
        "python", "-m", "pytest", "-q", "reference_services/tests/fuzz", "-m", "server", *session.posargs
    )


@nox.session
def sabotage(session: nox.Session) -> None:
    """Break the services from outside and print which control sees it; anything undeclared is an error."""
    _locked(session, "run")
    session.run("healthobs", "compliance", "sabotage")


@nox.session
def standards(session: nox.Session) -> None:
    """Hold what is exported against the official models of the standards, whose heavy packages have a lock of their own."""
    _locked(session, "tests")
    # The lock names what the tests lock lacks; nothing else is to be resolved.
    session.install("--no-deps", "--require-hashes", "-r", "requirements/standards.lock")
    session.run("python", "-c", "import oscal")  # a test that lacks it would be skipped
    session.run("python", "-m", "pytest", "-q", "tests/standards", *session.posargs)


@nox.session
def exports(session: nox.Session) -> None:
    """Hold exported AuditEvents against HL7's own schema, which npm brings."""
    _locked(session)
    required = {"HEALTHOBS_NPM": "required"}
    session.run("python", "-m", "pytest", "-q", "tests/test_audit_export.py", "-m", "server", env=required)


@nox.session
def newest_sqlite(session: nox.Session) -> None:
    """Run what stores with a SQLite whose WAL mode is used (`healthobs.audit.sqlite.wal_is_safe`), compiled from source."""
    _locked(session)
    folder = Path(session.create_tmp()).resolve()
    with session.chdir(folder):
        session.run("npm", "pack", "--silent", SQLITE_SOURCE, external=True)
        (archive,) = folder.glob("*.tgz")
        if sha256(archive.read_bytes()).hexdigest() != SQLITE_SHA256:
            session.error("the package with SQLite's source is another than the one that is pinned")
        session.run("tar", "xzf", archive.name, external=True)
        source = "package/deps/sqlite3/sqlite3.c"
        session.run("cc", "-O1", "-fPIC", "-shared", "-o", "libsqlite3.so.0", source, "-lm", external=True)
    used = {"LD_LIBRARY_PATH": str(folder)}
    check = "from healthobs.audit.sqlite import wal_is_safe; raise SystemExit(not wal_is_safe())"
    session.run("python", "-c", check, env=used)
    tests = sorted(map(str, Path("tests").glob("test_audit*.py")))
    more = [f"reference_services/tests/test_{name}.py" for name in ("demo_journey", "kit_app", "phi")]
    session.run("python", "-m", "pytest", "-q", "-n", "auto", *tests, *more, *session.posargs, env=used)


@nox.session
def lock(session: nox.Session) -> None:
    """Rewrite the hash-pinned locks under `requirements/`; they name no index."""
    session.install("uv")
    options = "--quiet --universal --generate-hashes --no-annotate --no-header"
    ours = "--no-emit-package healthobs --no-emit-package reference-services"
    compile_ = f"uv pip compile {options} {ours} --python-version {PYTHONS[0]}".split()
    local, dev = "requirements/local.in", "requirements/dev.lock"
    session.run(*compile_, local, "--group", "dev", "-o", dev)
    session.run(*compile_, local, "-c", dev, "--group", "tests", "-o", "requirements/tests.lock")
    session.run(*compile_, local, "-c", dev, "-o", "requirements/run.lock")
    pinned = re.findall(r"^([a-z0-9-]+)==", Path("requirements/tests.lock").read_text(), re.MULTILINE)
    more = [f"--no-emit-package={name}" for name in pinned]
    session.run(*compile_, *more, "-c", dev, "--group", "standards", "-o", "requirements/standards.lock")
    session.run(*compile_, local, "requirements/bench-peers.in", "-o", "requirements/bench.lock")
    session.run(*compile_, local, "requirements/peers.in", "-o", "requirements/peers.lock")


@nox.session
def mutation(session: nox.Session) -> None:
    """Plant faults in the engine, redaction and audit; at least 85 % of a sample of each must make a test fail."""
    _locked(session)
    for room, names in MUTATED.items():
        files = [str(path) for path in sorted(Path("src/healthobs").glob(room))]
        tests = [str(path) for name in names.split() for path in sorted(Path("tests").glob(f"{name}.py"))]
        sample, marked = ("50", "-m server") if room in MUTATED_ON_SERVERS else ("100", "")
        session.run(
            "python", "tools/mutate.py", *files, "--tests", *tests,
            "--sample", sample, "--jobs", "4", "--least", "85", *session.posargs,
            env={"PYTHONPATH": "src", "PYTEST_ADDOPTS": marked, "HEALTHOBS_MUST_HAVE_SERVERS": marked},
        )  # fmt: skip


@nox.session
def deep(session: nox.Session) -> None:
    """Run what takes long: real servers, the fuzzer, planted faults of the demo, images, mutants, and the bench."""
    _locked(session)
    required = {"HEALTHOBS_MUST_HAVE_SERVERS": "1"}
    session.run("python", "-m", "pytest", "-m", "server", "--timeout", "1800", *session.posargs, env=required)
    session.run("healthobs", "demo", "--break", "all")
    for other in ("images", "mutation"):
        session.notify(other)
    session.notify("bench", ["--times"])
