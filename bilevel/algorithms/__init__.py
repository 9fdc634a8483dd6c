"""Algorithms, a file each: Algorithm 1 of 2410.15610 (`bilevel_rlhf`) and two baselines; none imports another."""
