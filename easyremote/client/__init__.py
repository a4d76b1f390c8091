"""The client side: calling functions that nodes offer.

`future.py` is what a call returns, `session.py` makes calls on a link, `dialer.py` owns the link of
a client process, and `remote.py` is how users say all that.
"""
