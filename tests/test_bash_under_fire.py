"""`bash` against a model that means ill: floods, forks, secrets, limits. What it cannot hold is said in the docs."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
import trio
from commands import call, running

from alloy_trio import InvalidOption, ToolError
from alloy_trio.tools import bash
from alloy_trio.tools._bash import is_secret

ROOT = os.geteuid() == 0
LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


# --- floods


@pytest.mark.parametrize("flood", ["yes", "cat /dev/zero", "yes >&2", "while :; do yes & sleep 0.05; done 2>&1"])
async def test_a_flood_takes_bounded_memory_and_lets_others_work(tmp_path: Path, flood: str) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0.01)
            turns += 1

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with trio.fail_after(10), pytest.raises(ToolError, match="stopped after") as caught:
                await call(tmp_path, flood, timeout=0.5)
            nursery.cancel_scope.cancel()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert turns > 10
    assert peak < 4 << 20
    assert len(str(caught.value)) < 31_000


async def test_binary_output_is_text_in_the_end(tmp_path: Path) -> None:
    result = await call(tmp_path, "head -c 5000 /dev/urandom; printf '\\n\\000\\033[31m\\377'")
    result.encode()
    assert result.endswith("\n\0\033[31m\ufffd\nexit code: 0")


@pytest.mark.parametrize(
    "reader", ["cat", "read -r x", "python3 -c 'input()' 2>/dev/null", "cat < /dev/tty 2>/dev/null"]
)
async def test_who_waits_for_input_gets_none(tmp_path: Path, reader: str) -> None:
    """Nor a terminal to ask at."""
    with trio.fail_after(10):
        assert "exit code: " in await call(tmp_path, reader)


# --- forks: each of these ends by itself after some seconds, so that a failure here harms nobody

HOPS = 'if (( $(date +%s) < $1 )); then "$2" bash hop.sh "$@" & fi'
FORKS = {
    # Never many at once, but each is another process than the one before.
    "hops": "env bash hop.sh $(( $(date +%s) + 8 )) env",
    "hops-to-other-sessions": "bash hop.sh $(( $(date +%s) + 8 )) setsid",
    "hops-to-other-groups": "set -m; hop() { (( SECONDS < 8 )) && hop & }; hop; sleep 8",
    # 127 that all live on, and would have children of their own.
    "tree": "t() { (( $1 > 0 )) && { t $(($1 - 1)) & t $(($1 - 1)) & }; sleep 8; sleep 8 & wait; }; t 6",
    "deaf-tree": "trap '' TERM; t() { (( $1 > 0 )) && { t $(($1 - 1)) & t $(($1 - 1)) & }; sleep 8; }; t 5",
    "tree-of-sessions": "for i in {1..40}; do setsid bash -c 'setsid sleep 8 & sleep 8' & done; wait",
}


@LINUX
@pytest.mark.parametrize("forks", FORKS.values(), ids=FORKS)
async def test_what_forks_is_ended_even_while_it_forks(tmp_path: Path, forks: str) -> None:
    (tmp_path / "hop.sh").write_text(HOPS)
    mark = f"mark-{tmp_path.name}"
    with trio.fail_after(10), pytest.raises(ToolError, match="stopped after"):
        await call(tmp_path, f"{forks}; sleep 8", bash.configure(env={"OURS": mark}), timeout=0.7)
    assert not running(mark, "environ")
    await trio.sleep(0.1)
    assert not running(mark, "environ")


# --- secrets in the environment

SECRET_NAMES = [
    "OPENAI_API_KEY",
    "github_token",
    "My_Secret",
    "DB_PASSWORD",
    "PGPASSWD",
    "AWS_CREDENTIALS_FILE",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GH_TOKEN",
    "GITHUB_PAT",
    "PAT",
    "AZURE_DEVOPS_EXT_PAT",
    "SSH_AUTH_SOCK",
    "NPM_AUTH",
    "BASIC_AUTH",
    "DOCKER_AUTH_CONFIG",
    "OAUTH",
    "MYSQL_PWD",
    "PGPASSFILE",
    "SENTRY_DSN",
    "SSH_ASKPASS",
    "GPG_PASSPHRASE",
    "PRIVATE",
    "SESSION_COOKIE",
    "AZURE_STORAGE_CONNECTION_STRING",
    "SLACK_WEBHOOK_URL",
    "JENKINS_PSW",
    "AWS_CREDS",
    "MY_JWT",
    "ANTHROPIC_API_KEY",
]
PLAIN_NAMES = [
    "PATH",
    "HOME",
    "PWD",
    "OLDPWD",
    "PYTHONPATH",
    "USER",
    "SHELL",
    "LANG",
    "TERM",
    "EDITOR",
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "XAUTHORITY",
    "XDG_SESSION_ID",
    "VIRTUAL_ENV",
    "PATTERN",
    "MANPATH",
    "SHLVL",
    "TMPDIR",
    "CI",
    "SSL_CERT_FILE",
    "OPINION",
    "PING",
    "AUTHOR",
    "PIP_INDEX_URL",
    "DATABASE_URL",
]
SECRET_VALUES = [
    "postgres://app:hush@db.example/app",
    "redis://:hush@cache:6379",
    "http://me:hush@proxy:3128",
    "x -----BEGIN RSA PRIVATE KEY-----\nMII",
    "-----BEGIN PRIVATE KEY-----",
]
PLAIN_VALUES = [
    "postgres://db.example/app",
    "ssh://git@example.com:22/x",
    "https://example.com/a:b@c",
    "a:b@c",
    "/a:/b",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
async def test_names_that_look_like_secrets_are_not_passed_on(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "hush")
    assert "hush" not in await call(tmp_path, "env")


@pytest.mark.parametrize("value", SECRET_VALUES)
async def test_values_that_look_like_secrets_are_not_passed_on(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", value)
    assert "DATABASE_URL" not in await call(tmp_path, "env")


def test_what_does_not_look_like_one_is() -> None:
    assert [name for name in PLAIN_NAMES if is_secret(name, "x")] == []
    assert [value for value in PLAIN_VALUES if is_secret("X", value)] == []


# --- limits


@LINUX
@pytest.mark.parametrize(
    ("limits", "command", "code"),
    [
        ({"memory": 1 << 28}, "x=$(head -c 400000000 /dev/zero | tr '\\0' x)", None),
        ({"cpu_seconds": 1}, "while :; do :; done", 152),
        ({"file_size": 10_000}, "head -c 20000 /dev/zero > big", 153),
        ({"file_size": 10_240}, "head -c 10240 /dev/zero > big", 0),
    ],
    ids=["memory", "cpu", "file", "file-that-fits"],
)
async def test_limits_are_held_by_the_kernel(
    tmp_path: Path, limits: dict[str, int], command: str, code: int | None
) -> None:
    with trio.fail_after(20):
        result = await call(tmp_path, command, bash.configure(**limits))  # type: ignore[arg-type]
    assert result.endswith(f"exit code: {code}") if code is not None else not result.endswith("exit code: 0")


@LINUX
async def test_limits_are_kept_by_another_configure(tmp_path: Path) -> None:
    tool = bash.configure(file_size=10_240, cpu_seconds=7).configure(timeout=5, memory=1 << 40)
    assert await call(tmp_path, "ulimit -f; ulimit -S -t; ulimit -v", tool) == "10\n7\n1073741824\nexit code: 0"


async def test_a_limit_that_cannot_be_set_runs_nothing(tmp_path: Path) -> None:
    """The hard limit of this command is lower than what is asked for, and root may raise it: so ask for nonsense."""
    tool = bash.configure(memory=1 << 90)
    result = await call(tmp_path, "touch ran", tool)
    assert not result.endswith("exit code: 0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not ROOT, reason="we are not root")
def test_a_limit_of_processes_that_would_not_be_held_is_refused() -> None:
    with pytest.raises(InvalidOption, match="root"):
        bash.configure(processes=50)


@pytest.mark.skipif(ROOT, reason="Linux holds root to no such limit")
async def test_a_limit_of_processes(tmp_path: Path) -> None:
    assert "exit code: 0" not in await call(tmp_path, "(true) || exit 1", bash.configure(processes=1))


@pytest.mark.parametrize("name", ["memory", "processes", "cpu_seconds", "file_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1"])
def test_limits_that_cannot_be_right_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=name):
        bash.configure(**{name: value})  # type: ignore[arg-type]
