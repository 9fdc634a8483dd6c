"""Results of claims: what of one is damaged counts as nothing."""

import os

from experiments.claims import results, runner
from experiments.files import write_json


def test_what_a_claim_left_that_is_damaged_counts_as_nothing(tmp_path):
    said: list[str] = []
    os.mkfifo(tmp_path / results.RESULT)
    assert results.current(tmp_path, "ours", "ours", said.append) is None and "damaged result" in said[0]
    write_json(tmp_path, runner.STARTED, {"digest": "ours", "seconds": "long"})
    assert not runner.is_measured(tmp_path, "ours")
    write_json(tmp_path, results.RESULT, results.sealed({"digest": "ours"}))
    assert results.current(tmp_path, "ours", "ours", said.append) is None and "damaged result" in said[1]
    os.mkfifo(tmp_path / results.FIGURE)
    assert results.figure_digest(tmp_path) == ""
