"""The command line: `easyremote COMMAND`. `main` finds the command, one module holds each group.

`base` is what all commands share, `ask` talks to a gateway, `output` prints; the other modules are
called as their commands are.
"""
