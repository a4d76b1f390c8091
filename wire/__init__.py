"""The protocol of EasyRemote: bytes in, events out; no I/O, no clock, no randomness.

`connection.Connection` is the whole protocol for one peer. `wire/README.md` is the specification.
"""

if __name__ == "wire":
    raise ImportError("import easyremote.wire: the folder `wire` is not a package of its own")
