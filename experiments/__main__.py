"""Answer a question by running the chain with every setting of experiments/<name>.yaml."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import yaml

from experiments import collect, page, workspace
from experiments.experiment import Experiment, names, read
from lorarar.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the settings that have not been run, then write the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", nargs="?", help="a question; without it, all are listed")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="for all settings")
    parser.add_argument("--dry-run", action="store_true", help="check the settings and show which have run")
    parser.add_argument("--only", metavar="LABEL", action="append", help="run only these settings; the table has all")
    given = parser.parse_args(arguments)
    try:
        if not given.name:
            for name in names():
                print(f"{name:22}{read(name).question}")
            return 0
        _answer(read(given.name, dict(map(_change, given.set_param))), given.dry_run, given.only)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; finished settings are kept, the same command continues", file=sys.stderr)
        return 130
    return 0


def _answer(experiment: Experiment, dry: bool, only: list[str] | None) -> None:
    unknown = [label for label in only or [] if label not in {setting.label for setting in experiment.settings}]
    if unknown:
        labels = ", ".join(repr(setting.label) for setting in experiment.settings)
        raise UserError(f"{experiment.name}: no setting is called {unknown[0]!r}; known: {labels}")
    commit = workspace.commit()
    rows, started = [], time.time()
    for number, setting in enumerate(experiment.settings, start=1):
        facts = workspace.record(experiment, setting, commit)
        state = f"{experiment.name} {number}/{len(experiment.settings)}: {setting.label}"
        if dry:
            print(f"{state}: {'done' if facts else 'to run'}")
            continue
        if not facts and (not only or setting.label in only):
            print(f"{state}: begins after {(time.time() - started) / 60:.1f} minutes", flush=True)
            facts = workspace.run(experiment, setting, commit)
        if facts:
            rows.append((setting, facts))
            path = collect.write(experiment, rows)
    if dry:
        print(f"each: dvc exp run {' '.join(experiment.targets)}")
    elif rows:
        print(f"{len(rows)} of {len(experiment.settings)} settings are in {path} and {page.write(experiment.base)}")


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"-S {text}: give KEY=VALUE")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    sys.exit(main())
