"""Dial and listen: the one place where EasyRemote touches the network.

`byte_stream` is the interface that everything above works with; `socket_stream`, `tls_stream` and
`memory_stream` are its three kinds. `dialer` and `listener` make connections, `network` is the seam
that a simulation replaces.
"""

from ..wire.settings import ALPN
from .byte_stream import ByteStream, StreamBroken
from .dialer import DIAL_TIMEOUT_S, dial
from .listener import Handler, Incoming, ListenLimits, TlsListener
from .memory_stream import MemoryStream, memory_stream_pair
from .network import Listener, Network, RealNetwork, TlsFiles, listen
from .socket_stream import SocketStream
from .tls_stream import HTTP_ALPN, TlsStream

__all__ = [
    "ALPN",
    "DIAL_TIMEOUT_S",
    "HTTP_ALPN",
    "ByteStream",
    "Handler",
    "Incoming",
    "ListenLimits",
    "Listener",
    "MemoryStream",
    "Network",
    "RealNetwork",
    "SocketStream",
    "StreamBroken",
    "TlsFiles",
    "TlsListener",
    "TlsStream",
    "dial",
    "listen",
    "memory_stream_pair",
]
