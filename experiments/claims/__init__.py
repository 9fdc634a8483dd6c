"""Claims: theorems and comparisons, each checked as a test suite checks code. A file each, with `CLAIM = Claim(...)`.

A paper has a folder, whose `__init__.py` lists its claims.
"""

from experiments.claims import p1

CLAIMS = [f"P1.{name}" for name in p1.CLAIMS]
TRIED = p1.TRIED
