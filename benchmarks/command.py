"""What it costs to ask the command for help: CPU seconds of a whole process, its start included.

The bar is a second for the version and every help. The old way, everything imported first, is measured in turn.
"""
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.common import Options, Part, comparison, say
from neon.foundations.core import require

LINES, BAR, REPEATS = ("--version", "--help", "compress --help", "run --help", "study run --help"), 1.0, 7
NOW = "import sys; from neon.cli import main; sys.exit(main())"
EVERYTHING = ("import neon.command.compress, neon.command.ecomp, neon.command.runs, neon.command.study, "
              f"neon.command.tables; {NOW}")


def cpu_seconds(code: str, line: str) -> float:
    "User and system time of a process that has ended."
    pid = subprocess.Popen([sys.executable, "-c", code, *line.split()], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(pid.pid, 0)
    pid.returncode = os.waitstatus_to_exitcode(status)
    require(pid.returncode == 0, f"`neon {line}` ended with {pid.returncode}")
    return used.ru_utime + used.ru_stime


def run(options: Options) -> Iterator[Part]:
    for line in LINES[:1] if options.quick else LINES:
        pairs = [(cpu_seconds(EVERYTHING, line), cpu_seconds(NOW, line))
                 for _ in range(1 if options.quick else REPEATS)]
        row = comparison("command", f"neon {line}", "CPU seconds of a process", *zip(*pairs, strict=True), float("nan"))
        say(f"neon {line}: {row['cpu_seconds']:.2f} s")
        require(row["cpu_seconds"] < BAR, f"`neon {line}` takes {row['cpu_seconds']:.2f} CPU seconds, the bar is {BAR}")
        yield "", [row]
