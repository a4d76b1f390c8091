"""Who is who: tokens, join strings, pins, certificates, profiles and node secrets.

`credential.resolve_credential` answers the one question that a client or node has: which gateway,
how do I know it, and what do I show it. The gateway's side of the same is `gateway/state.py`.
"""
