"""Derivatives of J, G and Φ: what an algorithm may ask for (`types`), from samples or exactly, with critics."""
