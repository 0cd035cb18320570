"""The `bash` tool: results, caps, times, environment, configuration. `test_bash_ends` has how its commands end."""

from __future__ import annotations

import itertools
import math
import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import InvalidOption, ToolContext, ToolError
from alloy_trio.tools import Tool, bash
from alloy_trio.tools._process import Excerpt

if TYPE_CHECKING:
    from trio.testing import MockClock

LIMIT = 30_000


# --- results


@pytest.mark.parametrize(
    ("command", "result"),
    [
        pytest.param("echo hi", "hi\nexit code: 0", id="sh-01-output"),
        pytest.param("echo hi; exit 42", "hi\nexit code: 42", id="sh-01-42"),
        pytest.param("printf hi", "hi\nexit code: 0", id="sh-01-no-newline"),
        pytest.param("true", "exit code: 0", id="sh-01-no-output"),
        pytest.param("kill -9 $$", "exit code: 137", id="sh-01-signal"),
        pytest.param("no-such-command-here 2>/dev/null", "exit code: 127", id="sh-01-not-found"),
        pytest.param("echo 1; echo 2 >&2; echo 3", "1\n2\n3\nexit code: 0", id="sh-02-merged-in-order"),
        pytest.param("[[ $BASH_VERSION ]] && a=(x y) && echo ${a[1]}", "y\nexit code: 0", id="sh-02-shell-is-bash"),
        pytest.param("-e 2>/dev/null", "exit code: 127", id="sh-02-no-option-of-bash"),
        pytest.param("echo a > >(cat)", "a\nexit code: 0", id="output-of-a-child-that-ends-later"),
    ],
)
async def test_results(tmp_path: Path, command: str, result: str) -> None:
    assert await call(tmp_path, command) == result


async def test_sh_02_runs_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    assert await call(tmp_path, "ls") == "here\nexit code: 0"


async def test_sh_02_or_in_the_default_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    assert await bash("ls", ToolContext()) == "here\nexit code: 0"


async def test_there_is_no_input(tmp_path: Path) -> None:
    """Not even that of our own process, which may be a person at a terminal."""
    ours, (ends, writes) = os.dup(0), os.pipe()
    os.write(writes, b"typed")
    os.dup2(ends, 0)
    try:
        assert await call(tmp_path, "head -c 5", timeout=5) == "exit code: 0"
    finally:
        os.dup2(ours, 0)
        for descriptor in (ours, ends, writes):
            os.close(descriptor)


async def test_a_full_pipe_holds_nobody_up(tmp_path: Path) -> None:
    """Both streams share one pipe that is read all along."""
    result = await call(tmp_path, "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2; echo end")
    assert result.endswith("end\nexit code: 0")


@pytest.mark.parametrize(
    "command", ["echo a\0b", "echo " + "x" * 200_000, "echo \ud83d"], ids=["nul", "long", "surrogate"]
)
async def test_what_cannot_be_run_is_an_error(tmp_path: Path, command: str) -> None:
    with pytest.raises(ToolError, match="Cannot"):
        await call(tmp_path, command)


@pytest.mark.parametrize("name", ["gone", "file"])
async def test_sh_08_missing_working_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match=f"working directory .*{name} is missing"):
        await call(tmp_path / name, "echo hi")


async def test_no_bash_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="Cannot start bash: No such file"):
        await call(tmp_path, "echo hi", bash.configure(env={"PATH": str(tmp_path)}))


# --- the cap


async def test_sh_03_long_output_is_cut_in_the_middle(tmp_path: Path) -> None:
    result = await call(tmp_path, "echo start; head -c 50000 /dev/zero | tr '\\0' x; echo; echo end; exit 3")
    assert result.startswith("start\nxxx")
    assert result.endswith("xxx\nend\nexit code: 3")
    assert result.count("characters left out here") == 1
    assert len(result.removesuffix("exit code: 3")) <= LIMIT
    assert bash.max_result_chars is None


@pytest.mark.parametrize(
    ("length", "cut"), [(LIMIT, False), (LIMIT + 1, True)], ids=["sh-03-at-the-cap", "sh-03-above"]
)
async def test_the_cap_is_exact(tmp_path: Path, length: int, cut: bool) -> None:
    result = await call(tmp_path, f"printf '%{length}s' end")
    assert ("left out" in result) is cut
    assert result.endswith("end\nexit code: 0")
    assert (result == " " * (length - 3) + "end\nexit code: 0") is not cut


async def test_sh_04_characters_are_counted_not_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("\u20ac" * 29_999)
    assert await call(tmp_path, "cat f") == "\u20ac" * 29_999 + "\nexit code: 0"
    (tmp_path / "f").write_text("\u20ac" * 40_000)
    result = await call(tmp_path, "cat f")
    assert result.count("left out") == 1
    assert "\ufffd" not in result


async def test_sh_04_64_mb_never_sit_in_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        result = await call(tmp_path, "head -c 67108864 /dev/zero")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "of 67108864 characters left out" in result
    assert len(result) <= LIMIT + 20
    assert peak < 2 << 20


@settings(deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("ab\n\u00e9\u20ac\U0001f600"), max_size=600),
    cuts=st.lists(st.integers(0, 2400), max_size=8),
)
def test_sh_04_an_excerpt_does_not_depend_on_how_the_bytes_came(text: str, cuts: list[int]) -> None:
    whole, parts = Excerpt(300), Excerpt(300)
    data = text.encode()
    whole.feed(data)
    bounds = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(bounds):
        parts.feed(data[start:end])
    result = parts.finish()
    assert result == whole.finish()
    assert len(result) <= 300
    if len(text) <= 300:
        assert result == text
    else:
        head, mark, tail = result.partition(f" of {len(text)} characters left out here]\n\n")
        assert mark
        assert text.endswith(tail)
        assert text.startswith(head.rpartition("\n\n[")[0])


async def test_sh_04_what_is_no_utf_8_is_replaced(tmp_path: Path) -> None:
    assert await call(tmp_path, "printf 'caf\\351\\n\\342\\202'") == "caf\ufffd\n\ufffd\nexit code: 0"


# --- time


async def test_sh_07_the_model_may_ask_for_more_than_the_default(tmp_path: Path) -> None:
    quick = bash.configure(timeout=0.05)
    assert await call(tmp_path, "sleep 0.1; echo done", quick, timeout=30) == "done\nexit code: 0"
    with pytest.raises(ToolError, match=r"stopped after 0\.05 seconds"):
        await call(tmp_path, "sleep 60", quick)


async def test_sh_07_but_not_for_more_than_the_maximum(tmp_path: Path) -> None:
    quick = bash.configure(timeout=0.05, max_timeout=0.1)
    with pytest.raises(ToolError, match=r"stopped after 0\.1 seconds") as caught:
        await call(tmp_path, "sleep 60", quick, timeout=9999)
    assert "at most" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_sh_07_a_time_that_is_none_is_an_error(tmp_path: Path, timeout: float) -> None:  # noqa: ASYNC109 - the model's
    with pytest.raises(ToolError, match="positive"):
        await call(tmp_path, "touch ran", timeout=timeout)
    assert not (tmp_path / "ran").exists()


def test_sh_07_bash_bounds_itself_and_says_its_bounds() -> None:
    assert bash.timeout == math.inf
    assert "120 if not given, 600 at most" in str(bash.input_schema)
    assert "5 if not given, 10 at most" in str(bash.configure(timeout=5, max_timeout=10).input_schema)


# --- the environment

SECRETS = ["OPENAI_API_KEY", "github_token", "My_Secret", "DB_PASSWORD", "PGPASSWD", "AWS_CREDENTIALS_FILE"]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("PLAIN", "heard")


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    ("tool", "seen"),
    [
        pytest.param(bash, {"PLAIN": "heard"}, id="sh-09-default"),
        pytest.param(
            bash.configure(env={"github_token": "given", "OTHER": "x"}),
            {"PLAIN": "heard", "github_token": "given", "OTHER": "x"},
            id="sh-09-set",
        ),
        pytest.param(bash.configure(env={"PLAIN": None, "ABSENT": None}), {}, id="sh-09-removed"),
        pytest.param(
            bash.configure(inherit_env="all"),
            {"PLAIN": "heard", **dict.fromkeys(SECRETS, "hush")},
            id="sh-09-all",
        ),
        pytest.param(
            bash.configure(inherit_env="all", env=dict.fromkeys(SECRETS)),
            {"PLAIN": "heard"},
            id="sh-09-all-but",
        ),
    ],
)
async def test_environment(tmp_path: Path, tool: Tool, seen: dict[str, str]) -> None:
    lines = (await call(tmp_path, "env", tool)).splitlines()
    shown = dict(line.partition("=")[::2] for line in lines)
    names = [*SECRETS, "PLAIN", "OTHER", "ABSENT"]
    assert {name: shown[name] for name in names if name in shown} == seen
    assert shown["PATH"] == os.environ["PATH"]


def test_sh_09_values_are_not_shown() -> None:
    assert "hush" not in repr(bash.configure(env={"API_KEY": "hush"}))


# --- configuration


async def test_restricted(tmp_path: Path) -> None:
    result = await call(tmp_path, "cd /; echo x > f; /bin/ls; echo on", bash.configure(restricted=True))
    assert result.count("restricted") == 3
    assert result.endswith("on\nexit code: 0")
    assert not (tmp_path / "f").exists()


def test_configure_keeps_what_it_is_not_given() -> None:
    first = bash.configure(restricted=True, timeout=5)
    second = first.configure(max_timeout=50)
    assert (second.shell.restricted, second.shell.timeout, second.shell.max_timeout) == (True, 5, 50)
    assert (second.name, second.timeout, second.concurrent) == ("bash", math.inf, False)
    assert (bash.shell.restricted, bash.shell.timeout) == (False, 120)
    evolved = bash.evolve(name="shell", concurrent=True)
    assert isinstance(evolved, type(bash))
    assert evolved.configure(timeout=7).name == "shell"


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": math.nan}, {"timeout": 700}, {"max_timeout": 60}, {"inherit_env": "some"}],
    ids=str,
)
def test_options_that_cannot_be_right_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        bash.configure(**options)  # type: ignore[arg-type]


@attrs.define
class Elsewhere:
    """An executor that answers what it is told to, after some time."""

    answer: tuple[int, str]
    delay: float = 0
    calls: list[tuple[str, Path]] = attrs.field(factory=list)
    stopped: bool = False

    async def __call__(self, command: str, working_directory: Path) -> tuple[int, str]:
        self.calls.append((command, working_directory))
        try:
            await trio.sleep(self.delay)
        except trio.Cancelled:
            self.stopped = True
            raise
        return self.answer


async def test_sh_10_a_custom_executor_gets_command_and_directory(tmp_path: Path) -> None:
    elsewhere = Elsewhere((3, "from elsewhere"))
    result = await call(tmp_path / "not-here", "echo hi", bash.configure(executor=elsewhere))
    assert result == "from elsewhere\nexit code: 3"
    assert elsewhere.calls == [("echo hi", tmp_path / "not-here")]


async def test_sh_10_its_output_is_capped(tmp_path: Path) -> None:
    result = await call(tmp_path, "x", bash.configure(executor=Elsewhere((0, "a" * LIMIT + "b" * LIMIT))))
    assert len(result) <= LIMIT + 20
    assert result.startswith("aaa")
    assert result.count("left out") == 1
    assert result.endswith("bbb\nexit code: 0")


async def test_sh_10_its_time_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    elsewhere = Elsewhere((0, ""), delay=1000)
    with pytest.raises(ToolError, match="stopped after 120 seconds"):
        await call(tmp_path, "x", bash.configure(executor=elsewhere))
    assert trio.current_time() == pytest.approx(120, abs=1)
    assert elsewhere.stopped


async def test_sh_10_a_cancel_reaches_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    elsewhere = Elsewhere((0, ""), delay=1000)
    with trio.move_on_after(3) as scope:
        await call(tmp_path, "x", bash.configure(executor=elsewhere))
    assert scope.cancelled_caught
    assert elsewhere.stopped
