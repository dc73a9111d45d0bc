"""Bring everything that is derived from the notebooks up to date, or check that it is.

    python .ci/prepare.py            clean the notebooks, export neon/, write README.md and nbs/nbdev.yml
    python .ci/prepare.py --check    do the same in a copy; exit 1 and name each file that would change

The check looks at the working tree as it is, committed or not, and never writes to it.
README.md is made here, without Quarto: the site's home page (nbs/index.ipynb) as plain markdown.
"""
import argparse
import difflib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("settings.ini", "_quarto.yml", "README.md", "nbs", "neon", "figures")
GENERATED = ("README.md", "nbs/nbdev.yml", "nbs/**/*.ipynb", "neon/**/*.py")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")
MAX_DIFF_LINES = 20


def readme_link(target: str) -> str:
    "Where a link of nbs/index.ipynb leads when it is read from the folder above."
    if re.match(r"[a-z]+:|#|/", target): return target
    return posixpath.normpath(posixpath.join("nbs", target))


def outputs_text(cell: dict) -> str:
    "The printed and returned text of a code cell."
    parts = []
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain") or []
        parts.append("".join(text))
    return "".join(parts).rstrip()


def readme(notebook: dict) -> str:
    "README.md for the home page `notebook`: its prose, its visible code and what that printed."
    blocks = ["<!-- Made from nbs/index.ipynb by `make prepare`: edit the notebook. -->"]
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            if source.startswith("---"): continue  # front matter of the site
            blocks.append(LINK.sub(lambda m: m[1] + readme_link(m[2]) + m[3], source))
        elif cell["cell_type"] == "code":
            directives = re.findall(r"(?m)^#\|\s*([a-z_]+)", source)
            if "hide" in directives: continue
            code = re.sub(r"(?m)^#\|.*\n?", "", source).strip()
            if code: blocks.append(f"```python\n{code}\n```")
            if text := outputs_text(cell): blocks.append(f"```text\n{text}\n```")
    return "\n\n".join(blocks) + "\n"


def prepare(root: Path) -> None:
    "Clean, export and write the derived files of the project in `root`, which is the current folder."
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export
    from nbdev.quarto import refresh_quarto_yml

    os.environ.pop("IN_TEST", None)  # nbdev exports nothing while it believes it is under test
    nbdev_clean.__wrapped__()
    nbdev_export.__wrapped__()
    refresh_quarto_yml()
    index = root / "nbs" / "index.ipynb"
    (root / "README.md").write_text(readme(json.loads(index.read_text(encoding="utf-8"))), encoding="utf-8")


def snapshot(root: Path) -> dict[str, str]:
    "Text of every derived file, by its path in the project."
    paths = {p for pattern in GENERATED for p in root.glob(pattern) if p.is_file()}
    skipped = {".ipynb_checkpoints", "__pycache__"}
    kept = [p for p in sorted(paths) if not skipped & set(p.parts)]
    return {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in kept}


def copy_project(root: Path, folder: Path) -> Path:
    "A copy, in the new `folder`, of all that nbdev reads and writes."
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".quarto")
    for name in COPIED:
        source = root / name
        if source.is_dir(): shutil.copytree(source, folder / name, symlinks=True, ignore=ignore)
        elif source.exists(): shutil.copy2(source, folder / name)
    return folder


def changed_files(root: Path) -> dict[str, str]:
    "What `prepare` would change in `root`: file -> unified diff. Works on a copy."
    with tempfile.TemporaryDirectory(prefix="neon-check-") as folder:
        copy = copy_project(root, Path(folder).resolve() / "neon-copy")
        before = snapshot(copy)
        # A process of its own: nbdev remembers the project it was first asked about.
        done = subprocess.run([sys.executable, str(Path(__file__).resolve()), "--root", str(copy)], cwd=copy,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode: raise SystemExit(f"clean and export failed:\n{done.stdout}{done.stderr}")
        after = snapshot(copy)
    changed = {}
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new: continue
        lines = list(difflib.unified_diff((old or "").splitlines(), (new or "").splitlines(),
                                          f"{name} (now)", f"{name} (made again)", n=1, lineterm=""))
        if len(lines) > MAX_DIFF_LINES: lines[MAX_DIFF_LINES:] = [f"... and {len(lines) - MAX_DIFF_LINES} more lines"]
        changed[name] = "\n".join(lines)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description="Clean the notebooks, export neon/, write README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder (default: this one)")
    args = parser.parse_args()
    root = args.root.resolve()
    if not args.check:
        os.chdir(root)
        prepare(root)
        return 0
    changed = changed_files(root)
    for name, diff in changed.items(): print(f"{name} is not what the notebooks make of it:\n{diff}\n")
    if changed:
        print(f"{len(changed)} file(s) would change: {', '.join(changed)}\nRun `make prepare` and commit the result.")
        return 1
    print("clean, export and README change nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
