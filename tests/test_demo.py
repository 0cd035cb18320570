"""The demo provider: offline, the same each time, and openly no language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from alloy_trio import run, stream
from alloy_trio.events import TextDelta
from alloy_trio.providers import Demo
from alloy_trio.testing import assert_tool_called
from alloy_trio.tools import bash, read

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "thing"\nversion = "1.2.3"\n')
    (tmp_path / "notes.md").write_text("# Notes\n\nsome\n")
    return tmp_path


async def test_reads_a_file_and_tells_the_version(project: Path) -> None:
    result = await run(
        "Read pyproject.toml and tell me the version",
        provider="demo",
        tools=[read, bash],
        working_directory=project,
    )
    assert result.text == "The version in pyproject.toml is 1.2.3."
    assert_tool_called(result, "read", {"file_path": "pyproject.toml"})
    assert result.turns == 2
    assert result.usage.input_tokens > 0
    assert result.usage.output_tokens > 0


async def test_several_files_are_read_in_parallel(project: Path) -> None:
    result = await run("Read pyproject.toml and notes.md", provider="demo", tools=[read], working_directory=project)
    assert [c.input["file_path"] for c in result.tool_calls] == ["pyproject.toml", "notes.md"]
    assert result.turns == 2
    assert "notes.md has 3 lines and begins with: # Notes" in result.text


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        ("Run `echo hi`", "echo hi"),
        ("run echo hi and tell me what it says", "echo hi"),
        ("List the files", "ls -1 ."),
        ("please list the files in docs", "ls -1 docs"),
        ("list docs", "ls -1 docs"),
        ("list ./docs", "ls -1 ./docs"),
        ("list .", "ls -1 ."),
        ("ls docs", "ls -1 docs"),
        ("List the folder `docs`.", "ls -1 docs"),
        ("run 'echo a and b'", "echo a and b"),
    ],
)
async def test_runs_and_lists(prompt: str, command: str, project: Path) -> None:
    (project / "docs").mkdir()
    result = await run(prompt, provider="demo", tools=[bash], working_directory=project)
    assert_tool_called(result, "bash", {"command": command})
    assert "exit code: 0" in result.text


async def test_several_things_at_once(project: Path) -> None:
    (project / "docs").mkdir()
    prompt = "Read pyproject.toml and notes.md, run echo hi, then list docs and tell me the version"
    result = await run(prompt, provider="demo", tools=[read, bash], working_directory=project)
    assert [(c.name, *c.input.values()) for c in result.tool_calls] == [
        ("read", "pyproject.toml"),
        ("read", "notes.md"),
        ("bash", "echo hi"),
        ("bash", "ls -1 docs"),
    ]
    assert "The version in pyproject.toml is 1.2.3." in result.text


@pytest.mark.parametrize("path", ["./notes.md", ".gitignore", "/etc/hosts.allow", "src/Makefile", "`notes.md`."])
async def test_paths_are_taken_as_they_stand(path: str, project: Path) -> None:
    result = await run(f"Read {path}", provider="demo", tools=[read], working_directory=project)
    assert_tool_called(result, "read", {"file_path": path.rstrip(".").strip("`")})


async def test_a_long_request_of_nothing_is_no_work() -> None:
    assert "not a language model" in (await run("~" * 200_000, provider="demo")).text


async def test_says_what_it_is_when_it_does_not_understand() -> None:
    assert "not a language model" in (await run("Write a poem", provider="demo")).text


async def test_says_which_tool_it_lacks() -> None:
    assert "need the tool read" in (await run("Read pyproject.toml", provider="demo")).text


async def test_a_failed_tool_is_told(project: Path) -> None:
    result = await run("Read missing.txt", provider="demo", tools=[read], working_directory=project)
    assert "did not work" in result.text


async def test_the_same_request_gives_the_same_answer(project: Path) -> None:
    results = [await run("Read notes.md", provider=Demo(), tools=[read], working_directory=project) for _ in range(2)]
    assert results[0].messages == results[1].messages


async def test_streams_word_by_word_with_a_delay(autojump_clock: object) -> None:
    async with stream("Hello", provider="demo") as events:
        words = [event.text async for event in events if isinstance(event, TextDelta)]
    assert len(words) > 10
    assert "".join(words) == events.result.text
    assert trio.current_time() == pytest.approx(len(words) * 0.02)


async def test_a_conversation_goes_on(project: Path) -> None:
    first = await run("Read notes.md", provider="demo", tools=[read], working_directory=project)
    second = await run(
        "What is the version in pyproject.toml?",
        provider="demo",
        tools=[read],
        working_directory=project,
        messages=first.messages,
    )
    assert second.text == "The version in pyproject.toml is 1.2.3."
    ids = [call.id for message in second.messages for call in message.tool_uses]
    assert len(set(ids)) == len(ids)
