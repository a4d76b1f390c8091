"""The decisions of EasyRemote: snapshot in, placement out; no I/O, no clock, no randomness."""

if __name__ == "scheduler":
    raise ImportError("import easyremote.scheduler: the folder `scheduler` is not a package itself")
