"""The program of an agent process: `python -P .../easyremote/node/agent_main.py`.

It is started by its path and not by its name, so that the agent runs the very package that the
script imported, wherever that lies, and no module of the user's folders stands in for one of ours.
"""

import importlib.util
import sys
from pathlib import Path


def _use_this_package() -> None:
    """Make `import easyremote` find the package that this file belongs to."""
    folder = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "easyremote", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["easyremote"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    _use_this_package()
    from easyremote.node.agent_program import main

    sys.exit(main())
