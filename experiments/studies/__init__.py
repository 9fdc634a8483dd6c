"""Studies: one file each, with `main(out, say)`, which computes, writes NAME.json and NAME.png, and says a table."""

STUDIES = {
    "variance": "line 7's three estimators against sigma",
    "alignment": "true return and objective of four methods, over w, realisable or not",
    "domination": "where weak gradient domination holds, over w, reward class and objective",
    "complexity": "how many samples Algorithm 1 takes: the gap along a ladder of targets, and its parts",
    "actor_critic": "the same for the policy alone, at a fixed reward",
    "tuned": "samples that a gap takes with everything tuned at each budget, beside the theorem's schedule",
    "sensitivity": "which numbers of Algorithm 1 matter, which interact, and what bilevel tune finds without knowing them",
}
