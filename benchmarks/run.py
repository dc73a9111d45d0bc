"""Measure the engine against the loops it replaces.

    make bench                                           # everything; more than an hour
    make bench ARGS="--only step --only gemm"            # some benchmarks; their rows replace those in the table
    make bench ARGS="--only base --dataset house_8L"     # one data set of one benchmark
    make bench ARGS="--quick"                            # all, tried out in under a minute; nothing is written

step        one environment step: naive loop against refit and replace
base        base networks: naive loop against stacks
agent       training an agent: wall and CPU seconds
growth      cost of a step against rows and parameters
gemm        share of the machine's matrix product speed
memory      peak memory of each, in processes of their own
similarity  loss of a population: one network and layer at a time against all at once
ecomp       a generation of the published EComp: network by network against the population at once
compress    one call of `compress`, 0.8 million parameters on 5,000 and on 45,000 rows
command     the version and the helps of `neon`: under a CPU second each

Variants A and B run in turn in one process, at one thread; a ratio is that of the medians of their CPU times, with a
bootstrap interval (95 %), and the difference in accuracy (points) stands beside it. "(mean)" marks ratios of means,
which are those of the total times. Results are printed and kept in data/results/bench.csv (bench_agent.csv,
bench_growth.csv and bench_memory.csv beside it), after each data set, so that an interrupted run keeps what it has.
Data sets come from NEON_DATA or OpenML; where neither has them, synthetic data of the same size stand in and the name
says so.
"""
import argparse
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import agent, base, command, compress, ecomp, gemm, growth, memory, similarity, step
from benchmarks.common import Options, in_words, save, table_path
from neon.foundations.core import NeonError

BENCHMARKS = {"step": step.run, "base": base.run, "agent": agent.run, "growth": growth.run, "gemm": gemm.run,
              "memory": memory.run, "similarity": similarity.run, "ecomp": ecomp.run, "compress": compress.run,
              "command": command.run}
OUTPUT = "data/results/bench.csv"


def arguments() -> argparse.ArgumentParser:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS),
                        help="this benchmark instead of all; may be repeated")
    parser.add_argument("--dataset", action="append", metavar="NAME",
                        help="this data set instead of the benchmark's own; may be repeated")
    parser.add_argument("--networks", type=int, metavar="N", help="networks per data set in step, base and agent")
    parser.add_argument("--episodes", type=int, metavar="N",
                        help="episodes of the agent (default: the published rule, at least 288)")
    parser.add_argument("--workers", type=int, default=2, metavar="N",
                        help="processes that play for the agent (default: %(default)s)")
    parser.add_argument("--quick", action="store_true",
                        help="a trial: the smallest data set, few repetitions; written to --output only")
    parser.add_argument("--output", metavar="FILE",
                        help=f"where the table goes (default: {OUTPUT}; with --quick: nowhere)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    torch.set_num_threads(1)
    datasets = tuple(args.dataset) if args.dataset else None
    options = Options(args.quick, datasets, args.networks, args.episodes, args.workers)
    output = Path(args.output or OUTPUT) if args.output or not args.quick else None
    try:
        for name in args.only or BENCHMARKS:
            for table, rows in BENCHMARKS[name](options):
                for row in rows: print(in_words(row), flush=True)
                if output: save(output, table, rows, list(BENCHMARKS))
                if output: print(f"-> {table_path(output, table)}", flush=True)
    except NeonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt: return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
