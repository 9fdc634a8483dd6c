"""Claims: theorems, each checked as a test suite checks code. One short file each, with `CLAIM = Claim(...)`.

A claim is added by a file here, and its line below.
"""

CLAIMS = {
    "P1.bias": "p1_bias",
    "P1.value": "p1_value",
    "P1.estimator": "p1_estimator",
    "P1.rate": "p1_rate",
    "P1.actor_critic": "p1_actor_critic",
    "P1.tuned": "p1_tuned",
    "P1.hypergradient": "p1_hypergradient",
    "P1.domination": "p1_domination",
    "P1.alignment": "p1_alignment",
}
