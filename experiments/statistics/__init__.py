"""Intervals, which are made in `intervals` alone, exponents of power laws (`rates`), and interactions of two numbers."""
