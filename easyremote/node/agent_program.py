"""The two programs that are an agent: beside a script that started it, or as a script's parent."""

from __future__ import annotations

import os
import socket
import sys

import trio

from .. import log
from ..tuning import tune_for_relaying
from . import leash
from .agent import Agent
from .agent_config import AgentConfig
from .process import Stranger
from .rerun_plan import RerunPlan
from .restart import RestartIntensity
from .starter import start_script
from .workers import WorkerProcess

EXIT_USAGE = 2


def main() -> int:
    """Be the agent of the script that started this process; see `agent_main`.

    Returns:
        The exit code.
    """
    if sys.stdin.isatty():
        sys.stderr.write("This is started by node.serve(). Run your script by itself.\n")
        return EXIT_USAGE
    log.configure()
    config = AgentConfig.decode(sys.stdin.buffer.read())
    tune_for_relaying()
    return trio.run(_beside_script, config)


async def _beside_script(config: AgentConfig) -> int:
    agent = Agent(
        config.rerun, obstacle=config.rerun_obstacle, restarts=config.restarts,
        intensity=RestartIntensity.from_environment(),
    )  # fmt: skip
    agent.family.leash = config.leash
    sock = socket.socket(fileno=config.fd)
    line = socket.socket(fileno=config.signal_fd)
    script = Stranger(config.script_pid)
    if os.getppid() != config.script_pid:  # It died while we started.
        return 0

    def first() -> WorkerProcess:
        return WorkerProcess(agent, script, sock, line, announces=False)

    try:
        return await agent.run(first, config.spec, config.serve)
    finally:
        script.close()


def run_agent_of_script(plan: RerunPlan) -> int:
    """Be the agent and the parent of a script.

    Args:
        plan: How the script is run, the first time and again.

    Returns:
        The exit code for this process.
    """
    tune_for_relaying()
    return trio.run(_above_script, plan)


async def _above_script(plan: RerunPlan) -> int:
    agent = Agent(plan, intensity=RestartIntensity.from_environment())
    agent.family.leash = name = leash.new_leash()

    def first() -> WorkerProcess:
        return WorkerProcess(agent, *start_script(plan, first_run=True, label=leash.label(name, 0)))

    return await agent.run(first)
