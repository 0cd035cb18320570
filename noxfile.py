"""
The workshop: `nox` does what CI does, `nox -s tests` only the tests, `nox -s tests -- -k loop` some of them.

Needs Python and pip; uv is used where it is installed. Every session runs on the Python that runs nox.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import nox

nox.needs_version = ">= 2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "types", "api_types", "docs", "wheel"]

_PROGRAMS = ["tests/fuzz", *(f"tests/test_fuzz_{kind}.py" for kind in ("loop", "agent", "supervisor", "parsers"))]
_PYTEST = ["pytest", "-n", "auto", "--dist", "worksteal"]  # a process for each core
_PYPROJECT = nox.project.load_toml("pyproject.toml")


def _install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install dependency groups (pip learned to read them only in version 25.1) and the package, editable."""
    editable = ["-e", "."] if package else []
    session.install(*nox.project.dependency_groups(_PYPROJECT, *groups), *editable)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, one process for each core, and report which lines and branches they leave out."""
    _install(session, "test")
    session.run("coverage", "erase")
    try:
        session.run("coverage", "run", "-m", *_PYTEST, *session.posargs)
    finally:
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `nox -s lint -- --fix` mends what can be mended."""
    _install(session, "lint", package=False)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of everything: package, tests, examples, benchmarks."""
    _install(session, "types")
    session.run("mypy", *session.posargs)


@nox.session
def api_types(session: nox.Session) -> None:
    """Check that the types of all public names are complete, in the package as users get it."""
    _install(session, "types")
    session.install("--force-reinstall", "--no-deps", ".")  # the wheel, in place of the editable one
    session.run("pyright", "--ignoreexternal", "--verifytypes", "alloy_trio", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; a warning is an error, and nothing is fetched."""
    _install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel by way of the sdist, see that it holds the package and nothing else, and run it on its own."""
    session.install("build")
    dist = Path(session.create_tmp()).resolve() / "dist"
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = max(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    files = (path for path in Path("alloy_trio").rglob("*") if path.is_file() and path.suffix != ".pyc")
    wanted = {path.as_posix() for path in files}
    with zipfile.ZipFile(built) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    if wanted != held or "alloy_trio/py.typed" not in held:
        session.error(f"the wheel and the package differ in {sorted(wanted ^ held)}")
    session.install("--force-reinstall", str(built))  # with what it needs, and none of its extras
    session.cd(str(dist))  # away from the checkout
    session.run("python", "-m", "alloy_trio", "--provider", "demo", "-p", "hello")


# Sessions that need more than Python and pip (a server, a key, time) stand below, and not in `nox.options.sessions`.


@nox.session
def promises(session: nox.Session) -> None:
    """Break each promise in a copy of the source, and see that its test fails; `-- money` breaks some of them."""
    _install(session, "test")
    session.run("python", "tests/promises.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Let 500 agents live for an hour on a server that fails; `-- --minutes 5 --agents 100` is shorter."""
    _install(session, "test")
    session.run("python", "tests/soak.py", *session.posargs)


@nox.session
def drill(session: nox.Session) -> None:
    """Kill workers of a fleet while Redis is restarted, and count answers; `-- --requests 500`. Needs redis-server."""
    _install(session, "test")
    session.run("python", "tests/fleet_drill.py", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows. Needs uv, on Python 3.11."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "--editable", ".", "--group", "test")
    session.run("python", "-m", *_PYTEST, *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Run the tests on each Python that is to be had here; those that are not are skipped."""
    _install(session, "test")
    session.run("python", "-m", *_PYTEST, *session.posargs)


@nox.session
def pins(session: nox.Session) -> None:
    """Write down anew the versions that CI installs: .ci/constraints.txt."""
    session.install("uv")
    options = [
        "--all-extras",
        "--group=dev",
        "--group=fuzz",
        "--universal",
        "--no-header",
        "--no-annotate",
        "--upgrade",
        "--quiet",
    ]
    session.run("uv", "pip", "compile", "pyproject.toml", *options, "--output-file", ".ci/constraints.txt")


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known weaknesses in the pinned versions, here and in what they need. Needs the network."""
    session.install("pip-audit")
    session.run(
        "pip-audit", "--requirement", ".ci/constraints.txt", "--no-deps", "--disable-pip", "--strict", *session.posargs
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what we cost beside a bare client; `nox -s bench -- --compare benchmarks/results/0.1.0.json`, `-- --help`."""
    _install(session, "test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def picture(session: nox.Session) -> None:
    """Record docs/repl.svg anew: a conversation in the terminal. Needs tmux."""
    _install(session, "test")
    session.run("python", "tests/picture.py")


@nox.session
def foreign(session: nox.Session) -> None:
    """Run the wires against a server that somebody else wrote: installs the npm package aimock; needs Node.js 20."""
    _install(session, "test")
    home = Path(session.create_tmp()).resolve()
    package = "@copilotkit/aimock@1.43.0"
    session.run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), package, external=True)
    aimock = home / "node_modules" / ".bin" / "llmock"
    session.run("pytest", "tests/foreign", *session.posargs, env={"ALLOY_AIMOCK": str(aimock)})


@nox.session
def fuzz(session: nox.Session) -> None:
    """
    Look for what no test thought of: bytes made by atheris for the parsers, long programs made by hypothesis for what lives.

    `nox -s fuzz -- sse openai --minutes 10` fuzzes only these targets, for so long each (2); `--seeds FOLDER` has more inputs
    to begin with. `nox -s fuzz -- programs` runs the hypothesis tests alone. What was found is in .nox/fuzz/tmp/findings.
    """
    _install(session, "test", "fuzz")
    here = Path(session.create_tmp()).resolve()
    names = sorted(path.stem.removeprefix("target_") for path in Path("tests/fuzz").glob("target_*.py"))
    chosen = [arg for arg in session.posargs if arg in {*names, "programs"}] or [*names, "programs"]
    options = [arg for arg in session.posargs if arg not in chosen]
    for name in chosen:
        if name == "programs":
            session.run("pytest", *_PROGRAMS, env={"HYPOTHESIS_PROFILE": "deep"})
            continue
        corpus = ["--corpus", str(here / "corpus" / name), "--findings", str(here / "findings")]
        session.run("python", "tests/fuzz/run.py", name, *corpus, *options)
