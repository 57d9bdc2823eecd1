"""Start a program on several ranks of this machine, as launch/node.py does."""

import os
import socket
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def on_ranks(ranks: int, program: str | os.PathLike, *arguments: object, **own: object) -> tuple[list[str], dict]:
    """Return a command line and its environment, with `own` variables; the ranks connect at a free port."""
    line = [sys.executable, PROJECT / "launch" / "node.py", ranks, program, *arguments]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.getenv("PYTHONPATH")]))
    return list(map(str, line)), {**os.environ, **{name: str(value) for name, value in own.items()}}
