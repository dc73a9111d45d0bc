"""Constraints for pip: the oldest versions that settings.ini admits, or none.

    python .ci/versions.py oldest > versions.txt && pip install -c versions.txt -e ".[dev]"
    python .ci/versions.py newest
"""
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def oldest(root: Path = ROOT) -> list[str]:
    "The runtime requirements, each at its lower bound."
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    names = re.findall(r"([\w-]+)>=([\d.]+)", settings["DEFAULT"]["requirements"])
    return [f"{name}=={version}{'.0'*(2 - version.count('.'))}" for name, version in names]


if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]): sys.exit(__doc__)
    print(*(oldest() if sys.argv[1] == "oldest" else ["# none: the newest there are"]), sep="\n")
