"""
The command line, `python -m alloy_trio`: one prompt, or a conversation line by line.

It is a program, not a library: nothing here is meant to be imported.
"""
