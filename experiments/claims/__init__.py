"""Claims: theorems and comparisons, each checked as a test suite checks code. A file each, with `CLAIM = Claim(...)`.

A claim is added by a file, such as `p1/bias.py`, and its line below.
"""

CLAIMS = [
    "P1.bias",
    "P1.value",
    "P1.estimator",
    "P1.critic",
    "P1.critic_sup",
    "P1.rate",
    "P1.actor_critic",
    "P1.tuned",
    "P1.hypergradient",
    "P1.domination",
    "P1.alignment",
    "P1.ladder",
    "P1.bandit",
    "P1.sensitivity",
    "P1.cartpole",
    "P1.hypergradients",
    "P1.nonlinearity",
]

# Tried beside the claims, and no longer computed.
TRIED = (
    "Incentives in four rooms, as described with HPGD (2406.01575), by ascents on the exact F: the published numbers are "
    "not reproduced throughout. λ = 0.001, β = 1: 0.59 from equal penalties (AMD 0.58, zeroth order 0.59), 1.15 with the "
    "upper hallway blocked at first (HPGD 0.91 ± 0.088, between the two maxima). λ = 0.005, β = 1: 0.55 and 1.04, if the "
    "follower is regularised by entropy (HPGD 1.17 ± 0.011, AMD 1.28), 0.66 at most if by KL. λ = 0.003, β = 3: 0.56 and "
    "1.06 (HPGD 0.73 ± 0.001, AMD 0.39).",
)
