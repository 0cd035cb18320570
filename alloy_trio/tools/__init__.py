"""Tools: `Tool` itself, and `read`, `write`, `edit`, `bash`, `bash_sandboxed`. Make your own with `alloy_trio.tool`."""

from __future__ import annotations

from .._util import export as _export
from ._bash import bash as bash
from ._bash_sandboxed import bash_sandboxed as bash_sandboxed
from ._edit import edit as edit
from ._output import ToolOutput as ToolOutput
from ._read import read as read
from ._tool import Tool as Tool
from ._write import write as write

__all__ = ["Tool", "ToolOutput", "bash", "bash_sandboxed", "edit", "read", "write"]

_export(globals(), __all__)
