"""`python -m easyremote` is the command `easyremote`."""

from easyremote.cli.main import main

if __name__ == "__main__":
    main()
