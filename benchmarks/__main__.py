"""The benchmark suite: ``python -m benchmarks run`` measures, ``report`` makes tables and plots.

``pipeline`` measures what is around the steps of a training job.
"""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks import pipeline, suite, suite_report
from benchmarks.workers import BenchmarkError
from jaxllm.errors import InputError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    formatter = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser("run", description=suite.__doc__, formatter_class=formatter)
    suite.add_options(run)
    report = commands.add_parser("report", description="Tables, and plots, of what `run` measured.")
    report.add_argument(
        "files", nargs="+", metavar="FILE", help="result rows, also of finetune and tasks"
    )
    report.add_argument("--plots", metavar="DIR", help="a picture of each workload goes here")
    job = commands.add_parser("pipeline", description=pipeline.__doc__, formatter_class=formatter)
    pipeline.add_options(job)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 when nothing could be measured, 2 for a mistake in the arguments."""
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.command != "pipeline":
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    # An exception ends the worker too; the signal alone would leave it running.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments.command == "pipeline":
            print(pipeline.run(arguments, rest))
            return 0
        if arguments.command == "run":
            rows = suite.run(arguments)
        else:
            rows = suite_report.read(arguments.files)
            if arguments.plots is not None:
                suite_report.plot(rows, Path(arguments.plots))
    except (InputError, BenchmarkError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    finally:
        signal.signal(signal.SIGTERM, before)
    print(suite_report.markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
