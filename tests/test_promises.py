"""Each promise of `promises.py` has its test, its place in the source, and its line in the docs; `nox -s promises` breaks them."""

from __future__ import annotations

import ast
import functools

import pytest
from promises import PROMISES, ROOT, Promise, table


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.says)
def test_a_promise_has_its_test_and_its_place(promise: Promise) -> None:
    file, _, function = promise.test.partition("::")
    assert function in functions(file), "its test is gone: name another one"
    source = (ROOT / "alloy_trio" / promise.path).read_text("utf-8")
    assert source.count(promise.old) == 1, "what keeps it has been rewritten: say how it is broken now"
    broken = source.replace(promise.old, promise.new)
    assert broken != source
    ast.parse(broken)


def test_the_docs_have_all_of_them() -> None:
    assert table() in (ROOT / "docs" / "reliability.md").read_text("utf-8"), "python tests/promises.py --table"
