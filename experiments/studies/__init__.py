"""Studies: one file each, with `main(out, say)`, which computes, writes NAME.json and NAME.png, and says a table."""

STUDIES = {
    "cartpole": "CartPole from at most 500 labels, by three methods",
    "variance": "line 7's three estimators against sigma",
    "alignment": "true return and objective of four methods, over w, realisable or not",
    "domination": "where weak gradient domination holds, over w, reward class and objective",
    "complexity": "how many samples Algorithm 1 takes: the gap along a ladder of targets, and its parts",
    "actor_critic": "the same for the policy alone, at a fixed reward",
    "tuned": "samples that a gap takes with everything tuned at each budget, beside the theorem's schedule",
    "nonlinearity": "reward, critic and policy from linear to deep: what is lost, and whether the meter tells",
    "four_rooms": "incentives in four rooms: exact hypergradients beside the numbers published with HPGD",
    "sensitivity": "which numbers of Algorithm 1 matter, which interact, and what bilevel tune finds without knowing them",
}
