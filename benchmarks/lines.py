"A table that grows by a line at a time, so that a run that was interrupted goes on."
from pathlib import Path

import pandas as pd

from neon.foundations.core import write_csv


class Lines:
    "Lines of a csv file, told apart by some columns."

    def __init__(self, path: Path, *keys: str):
        self.path, self.keys = path, list(keys)
        self.table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=self.keys)

    def holds(self, *values) -> bool:
        "Is there a line with these values of the keys?"
        return bool((self.table[self.keys] == list(values)).all(axis=1).any())

    def add(self, *lines: dict) -> None:
        "Lines more, in the file as well."
        new = pd.DataFrame(lines)
        self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new
        write_csv(self.path, self.table)
