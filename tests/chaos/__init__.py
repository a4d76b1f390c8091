"""Chaos with real processes: a fault proxy, a killer, and a checker of what came of the calls."""
