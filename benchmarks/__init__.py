"""How fast EasyRemote is, beside the floor of the same machine in the same run.

`python -m benchmarks --help` names the rows. A figure alone says little, because machines differ
and are noisy: each row alternates between ours and its floor (the same bytes over the same hops
with nothing in between) and prints the ratio.
"""
