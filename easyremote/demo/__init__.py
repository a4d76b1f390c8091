"""`easyremote demo`: a gateway and two nodes as real processes, and something to look at.

`picture.py` is what is computed, `node.py` is a whole node, `show.py` is the client.
"""
