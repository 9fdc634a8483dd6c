"""Worlds, a file each: pure dynamics apart from the true reward, which a learner never sees; the nouns stand in `base`."""
