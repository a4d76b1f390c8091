"""All targets by name."""

from __future__ import annotations

from .asking import OPTIONS, QUERIES
from .codec import ARRAYS, DECODER, EXCEPTIONS, MESSAGES, VALUES
from .nodes import RECORDS, REGISTRATIONS, TELEMETRY
from .operations import OPERATIONS
from .talk import BUFFER, CONVERSATION
from .target import Target
from .texts import JOIN_STRINGS, TOKENS

TARGETS: dict[str, Target] = {
    "decoder": DECODER,
    "messages": MESSAGES,
    "buffer": BUFFER,
    "conversation": CONVERSATION,
    "operations": OPERATIONS,
    "values": VALUES,
    "exceptions": EXCEPTIONS,
    "arrays": ARRAYS,
    "join_strings": JOIN_STRINGS,
    "tokens": TOKENS,
    "registrations": REGISTRATIONS,
    "telemetry": TELEMETRY,
    "records": RECORDS,
    "queries": QUERIES,
    "options": OPTIONS,
}
