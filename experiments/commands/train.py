"""Run an algorithm on a world, many seeds in one program.

The same command resumes a run that was interrupted; with more --steps or --seeds it extends a finished one. The run's folder
holds report.html, with its tables and figures, and all that experiments.load_run reads.

  bilevel train --sigma 0.03 0.1 0.3 --kl-weight 0.2 0.5     a sweep: six points, each with every seed
  bilevel train --world cartpole --print-config > run.yaml   all that the run would be, to be edited
  bilevel train --config run.yaml --seeds 64
"""

import shlex
from collections.abc import Sequence

from experiments.commands.arguments import given_options, parse_train
from experiments.files import read_json
from experiments.output import Voice
from experiments.runs.alike import refuse_other_options
from experiments.runs.driver import train
from experiments.runs.interruption import Stopped
from experiments.runs.processes import is_main, joined
from experiments.settings.config import idle


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Runs what the arguments ask for; the exit code: 0, or `--stopped-code` where a signal stopped the run."""
    config, output, processes = parse_train(arguments, about=__doc__)
    command = shlex.join(["bilevel", "train", *arguments])
    with joined(processes):
        refuse_other_options({"--peer-timeout": processes.peer_timeout, "--stopped-code": output.stopped_code})
        for sentence in idle(config, given_options(arguments)) if is_main() else ():
            voice.say(f"note: {sentence}")
        try:
            folder = train(config, output.out or None, output.allow_layout_change, voice.say, command)
        except Stopped as stopped:
            voice.say(f"bilevel: {stopped}")
            return output.stopped_code
        if is_main():
            voice.numbers(read_json(folder, "summary.json"))
    return 0
