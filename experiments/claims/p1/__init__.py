"""Claims on the first paper, "On The Global Convergence Of Online RLHF With Neural Parametrization" (2410.15610).

A claim is added by a file, such as `bias.py`, and its line below; files that are not listed are what several claims share.
"""

CLAIMS = [
    "bias",
    "value",
    "estimator",
    "critic",
    "critic_sup",
    "rate",
    "actor_critic",
    "tuned",
    "hypergradient",
    "domination",
    "alignment",
    "ladder",
    "bandit",
    "sensitivity",
    "cartpole",
    "hypergradients",
    "nonlinearity",
]

# Tried beside the claims, and no longer computed.
TRIED = (
    "Incentives in four rooms, as described with HPGD (2406.01575), by ascents on the exact F: the published numbers are "
    "not reproduced throughout. λ = 0.001, β = 1: 0.59 from equal penalties (AMD 0.58, zeroth order 0.59), 1.15 with the "
    "upper hallway blocked at first (HPGD 0.91 ± 0.088, between the two maxima). λ = 0.005, β = 1: 0.55 and 1.04, if the "
    "follower is regularised by entropy (HPGD 1.17 ± 0.011, AMD 1.28), 0.66 at most if by KL. λ = 0.003, β = 3: 0.56 and "
    "1.06 (HPGD 0.73 ± 0.001, AMD 0.39).",
)
