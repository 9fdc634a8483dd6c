"""Bilevel RLHF as pure functions: algorithms, the derivatives that they ask for, and exact oracles of finite worlds.

Here stand the nouns (`types`), models, preferences, sampling, and the one loop over outer steps (`run`, `lanes`); Φ is in
`bilevel.exact.bilevel`, Algorithm 1 with its line 7 in `bilevel.algorithms.bilevel_rlhf`.
"""
