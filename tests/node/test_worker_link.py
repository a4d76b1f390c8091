"""The link between worker and agent: nested calls, replicas, and how it ends."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from easyremote import seam, values
from easyremote.handlers import StreamHandler
from easyremote.node import context
from easyremote.wire.message import Call, Result

from .harness import WAIT_S, rig


def test_nested_call_travels_on_the_agents_link() -> None:
    """A function calls another one over the injected link, and its slot is lent meanwhile."""
    with rig() as made:
        answered = threading.Event()

        class Listener:
            def __init__(self) -> None:
                self.link: Any = None

            def link_up(self, link: Any) -> None:
                self.link = link

            def link_down(self, error: BaseException | None) -> None: ...
            def link_credit(self) -> None: ...

        class Answer(StreamHandler):
            def on_message(self, *args: Any) -> None:
                answered.set()

        @made.register
        def outer() -> str:
            calls = seam.injected()
            assert calls is not None and not calls.on_io_thread()
            body = values.encode_call((), {}, allow_pickle=False).body
            call = Call(secrets.token_bytes(16), "other", None, {}, None, 0, 0,
                        seam.current_ticket.get(), body, [])  # fmt: skip
            listener = Listener()

            def go() -> None:
                calls.listen(listener)
                listener.link.open(call, handler=Answer())

            calls.post(go)
            lender = seam.current_lender.get()
            assert lender is not None
            with lender.lend():
                assert answered.wait(WAIT_S)
            return "outer"

        made.register(lambda: "while it waits", name="between")
        agent = made.start()
        outer_call = agent.call("outer")
        stream, message = agent.nested.get(timeout=WAIT_S)
        assert (message.function, message.ticket) != ("", b"")
        assert agent.call("between").result() == "while it waits"
        agent.io.post(lambda: stream.send(Result(0, 0.0, b"\xf6", []), end=True))

        assert outer_call.result() == "outer"


def test_goodbye_of_the_agent_is_no_error() -> None:
    """After a goodbye the worker has ended, without an error, and takes its injected link back."""
    with rig() as made:
        agent = made.start()
        agent.close()

        assert made.worker.wait_ended(WAIT_S)
        assert made.worker.error is None
        made.worker.close()
        assert seam.injected() is None


def test_vanished_agent_is_an_error_and_stops_what_runs() -> None:
    """When the agent is gone, running calls are told to stop and the reason is kept."""
    with rig() as made:
        told = threading.Event()

        @made.register
        def work() -> None:
            while not context().cancelled():
                time.sleep(0.001)
            told.set()

        agent = made.start()
        agent.call("work").next("started")
        agent.vanish()

        assert made.worker.wait_ended(WAIT_S)
        assert told.wait(WAIT_S)
        assert made.worker.error is not None


def test_replica_runs_its_group_on_the_main_thread() -> None:
    """A process that serves one function runs it on its main thread, one call at a time."""
    with rig(group="fn:alone") as made:
        made.register(isolation="process", name="alone")(lambda: threading.current_thread().name)
        agent = made.start()

        assert agent.call("alone").result() == "easyremote-main"
