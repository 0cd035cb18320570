"""A session as JSON text: any bytes are one, or a `ValueError`; and one is written and read back as it is."""

from __future__ import annotations

from alloy_trio import Document, Image, Message, Opaque, Session, Text, Thinking, ToolResult, ToolUse, Usage

SEEDS = [
    Session(
        id="s",
        messages=[
            Message.user("Hi", Image("image/png", b"pixels"), Document("text/plain", "https://a.test")),
            Message.assistant(
                Thinking("Hm.", "sealed"),
                Text("So.", ({"url": "u"},)),
                ToolUse("a", "look", {"at": [1, 2.5, None]}),
                Opaque("p", {"type": "odd"}),
            ),
            Message.user(ToolResult("a", "1", is_error=True, outcome="error")),
        ],
        usage=Usage(1, 2, estimated=True),
        metadata={"k": {"a": [True]}},
    )
    .to_json()
    .encode()
]


def check(data: bytes) -> None:
    """Raise what is no ValueError, and AssertionError where it is not."""
    try:
        session = Session.from_json(data)
    except ValueError:
        return
    again = Session.from_json(session.to_json())
    assert again == session
