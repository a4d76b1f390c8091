"""Tests of the scheduler: pure functions, so plain asserts and properties."""
