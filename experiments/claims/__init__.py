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
]
