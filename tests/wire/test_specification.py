"""wire/README.md is true: its example is replayed, its tables are the ones that run."""

from __future__ import annotations

import re
from pathlib import Path

from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import CODES, ErrorCode
from easyremote.wire.frame import PREAMBLE, FrameType

from .pair import take, written

TEXT = (Path(__file__).parents[2] / "wire" / "README.md").read_text()


def example() -> list[tuple[str, bytes]]:
    """The directions and bytes of the example, in order."""
    block = re.search(r"```hex\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    steps: list[tuple[str, str]] = []
    for line in block[1].splitlines():
        if line.startswith("#"):
            continue
        if line[0] in "<>":
            steps.append((line[0], line[2:]))
        else:
            steps[-1] = (steps[-1][0], steps[-1][1] + line.strip())
    return [(way, bytes.fromhex(text)) for way, text in steps]


def test_the_example_says_what_its_comments_say() -> None:
    """Fed to a fresh acceptor, the dialer's bytes give the events that the comments promise."""
    acceptor = Connection(dialer=False, now=0.0)
    there: list[ev.Event] = []
    for way, data in example():
        if way == ">":
            there += take(acceptor, data)
        elif not acceptor.ready:
            acceptor.welcome({"user": "alice"})
            assert written(acceptor) == data, "our own WELCOME is the one shown"

    assert there[0] == ev.HelloReceived(1, "client", {"token": "erc_abc"}, {})
    opened = [event for event in there if isinstance(event, ev.StreamOpened)]
    calls = [ms.decode(ms.Call, event.payload) for event in opened]
    assert [call.function for call in calls] == ["add", "mean", "count"]
    assert calls[0].node_ids == ["gpu-1"]
    assert calls[1].segments == [4, 8]
    raw = [bytes(event.frame[16:]) for event in there if isinstance(event, ev.DataReceived)]
    assert raw == [b"BODY", b"8 bytes."]
    assert ev.CancelReceived([(5, 0, 5000)]) in there
    assert there[-2:] == [ev.GoawayReceived(0, ""), ev.ConnectionLost(None)]


def test_the_answers_of_the_example_are_taken() -> None:
    """The other direction: result, failure and item reach a dialer that asked."""
    dialer = Connection(dialer=True, now=0.0)
    dialer.hello("client", {"token": "erc_abc"}, {})
    assert written(dialer) == example()[0][1], "our own HELLO is the one shown"
    events: list[ev.Event] = []
    for way, data in example():
        if way == "<":
            events += take(dialer, data)
            while dialer.ready and dialer.opened < 3:
                dialer.open(ms.Kind.CALL, b"\x80", end=dialer.opened < 2)

    kinds = [event.kind for event in events if isinstance(event, ev.MessageReceived)]
    assert kinds == [ms.Kind.RESULT, ms.Kind.FAILURE, ms.Kind.ITEM]
    failure = next(e for e in events if isinstance(e, ev.MessageReceived) and e.kind == 8)
    assert ms.decode(ms.Failure, failure.payload).reason == "ValueError: no"


def test_the_tables_of_the_specification_are_the_ones_that_run() -> None:
    """Frame types, error codes and the preamble are those of the code."""
    for type_ in FrameType:
        assert re.search(rf"^\| {int(type_)} \| {type_.name} \|", TEXT, re.MULTILINE), type_
    for code in ErrorCode:
        row = rf"\| {int(code)} \| {code.name} \| {CODES[code].http_status} \|"
        assert re.search(row, TEXT), code
    for kind, cls in ms.BY_KIND.items():
        assert re.search(rf"^\| {kind} \| {cls.__name__} \|", TEXT, re.MULTILINE), cls
    assert PREAMBLE.hex(" ") in TEXT
