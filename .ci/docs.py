"""Build the site into _docs; without Quarto, say what is missing and check all that can be checked without it.

    python .ci/docs.py           check, process the pages, render them
    python .ci/docs.py --pages   only process the pages into _proc

nbdev's steps are called one by one instead of `nbdev_docs`, for two reasons: README.md must stay as `make prepare`
wrote it, and notebooks show figures from ../figures, which is where a reader of the repository finds them but lies
outside the site.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MISSING = """
The site was not built: `quarto` is not on the PATH. Quarto is a program of its own, not a Python package; get it from
https://quarto.org/docs/get-started/ (the version that .github/workflows/docs.yml pins, or newer) and run `make docs`
again.

Checked without it, just above: every page passes nbdev's processors for the site, and titles, links between pages,
figures and their alternative texts, the sidebar, _quarto.yml and README.md are in order. To read the pages now:
`make lab`.
"""


def run(*command, cwd=ROOT) -> None:
    "Run `command`; stop with its exit code if it fails."
    done = subprocess.run([str(c) for c in command], cwd=cwd, stdin=subprocess.DEVNULL)
    if done.returncode: sys.exit(done.returncode)


def site_figures(text: str) -> str:
    "A page's links to figures, one folder up in the repository, as they are on the site: ../figures/ -> figures/."
    return re.sub(r"(?<=[(\"'])\.\./((?:\.\./)*figures/)", r"\1", text)


def process_pages(root: Path) -> Path:
    "The pages as Quarto gets them, in a folder with the figures beside them."
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    os.chdir(root)
    refresh_quarto_yml()
    many = len([*(root / "nbs").rglob("*.ipynb")]) > 40  # each process imports everything again
    pages = Path(proc_nbs(force=True, n_workers=2 if many else 0))
    shutil.copytree(root / "figures", pages / "figures")
    for page in pages.rglob("*.ipynb"):
        text = page.read_text(encoding="utf-8")
        page.write_text(site_figures(text), encoding="utf-8")
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the site into _docs.")
    parser.add_argument("--pages", action="store_true", help="only process the pages into _proc")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder (default: this one)")
    args = parser.parse_args()
    root = args.root.resolve()
    if args.pages:
        print(process_pages(root))
        return
    run(sys.executable, "-m", "pytest", "-q", "tests/test_docs.py", cwd=root)
    pages, quarto = process_pages(root), shutil.which("quarto")
    if quarto is None:
        print(MISSING)
        return
    run(quarto, "render", "--no-cache", cwd=pages)
    shutil.rmtree(root / "_docs", ignore_errors=True)
    shutil.move(pages / "_docs", root / "_docs")
    print("the site is in _docs: open _docs/index.html")


if __name__ == "__main__":
    main()
