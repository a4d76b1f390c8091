"""Fuzzing: garbage in, events or typed errors out, in bounded time and memory."""
