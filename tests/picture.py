"""
Make the picture of the README, docs/repl.svg: a recording of the program in tmux, where a script plays the model.

Run by hand, `nox -s picture`, when what is shown has changed.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from test_repl_tmux import Model, Screen

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "repl.svg"
COLUMNS, ROWS = 88, 36

_DARK = TerminalTheme(
    (24, 26, 31),
    (220, 223, 228),
    [
        (40, 44, 52),
        (224, 108, 117),
        (152, 195, 121),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (220, 223, 228),
    ],
    [
        (92, 99, 112),
        (224, 108, 117),
        (152, 195, 121),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (255, 255, 255),
    ],
)

EDIT = {
    "name": "edit",
    "file_path": "mean.py",
    "old_string": "    return sum(numbers) / len(numbers)",
    "new_string": '    if not numbers:\n        raise ValueError("the mean of nothing")\n    return sum(numbers) / len(numbers)',
}
LAST = """Done: an empty list is refused now, **before** the division.

```python
>>> mean([])
ValueError: the mean of nothing
```

- `mean([1, 2])` is still `1.5`
- nothing else has changed
"""


def record() -> str:
    """Hold a short conversation, and return what the terminal shows in the end, with its escape codes."""
    with tempfile.TemporaryDirectory() as folder, Model() as model:
        home = Path(folder)
        (home / "mean.py").write_text("def mean(numbers):\n    return sum(numbers) / len(numbers)\n")
        model.answers = [
            ["Let me look.", {"name": "read", "file_path": "mean.py"}],
            ["The division fails for an empty list. I will refuse it.", EDIT],
            [LAST],
        ]
        with Screen(home, *model.arguments, columns=COLUMNS, rows=ROWS) as screen:
            screen.ready()
            screen.type("mean([]) divides by zero. Fix @mean.py")
            screen.expect("run edit?")
            screen.type("y")
            screen.expect("nothing else has changed")
            screen.ready()
            return screen.shown(styled=True).rstrip()


def to_svg(screen: str) -> str:
    """Draw a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title="python -m alloy_trio", theme=_DARK, unique_id="repl")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # it would fetch a font
    return (
        "\n".join(line.rstrip() for line in svg.replace("Fira Code", "ui-monospace, Menlo, Consolas").splitlines())
        + "\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(to_svg(record()), encoding="utf-8")
