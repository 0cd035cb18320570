"""Tokens, counted the same way for every provider."""

import attrs


@attrs.frozen
class Usage:
    """
    What one or more requests consumed, in tokens.

    `input_tokens` are the uncached ones: the prompt's size is `input_tokens + cache_creation_input_tokens +
    cache_read_input_tokens`. `cache_creation_1h_input_tokens` is the part of `cache_creation_input_tokens` that was
    written with a lifetime of one hour. `output_tokens` include hidden reasoning; `reasoning_tokens` is the part that
    was. `server_tool_calls` counts calls that the provider ran itself. `estimated` says that a number in here is ours,
    not the provider's; it survives every sum.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_tokens: int = 0
    server_tool_calls: int = 0
    estimated: bool = False

    @property
    def is_possible(self) -> bool:
        """Whether all of it are whole numbers that are not below 0."""
        numbers = (
            self.input_tokens,
            self.output_tokens,
            self.cache_creation_input_tokens,
            self.cache_creation_1h_input_tokens,
            self.cache_read_input_tokens,
            self.reasoning_tokens,
            self.server_tool_calls,
        )
        return set(map(type, numbers)) == {int} and min(numbers) >= 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.cache_creation_1h_input_tokens + other.cache_creation_1h_input_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.server_tool_calls + other.server_tool_calls,
            self.estimated or other.estimated,
        )


NO_USAGE = Usage()
"""Nothing: what is not counted yet."""
