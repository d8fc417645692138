"""Inputs of the report: what earlier stages have left about every split, read once."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from lorarar import pictures
from lorarar.data.catalog import Split, Style, Subject, pair_name
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.registry import METHODS
from lorarar.report import claims, coefficients, failures, footprint, panels, power, ranking, tables, trust
from lorarar.scoring import crossed
from lorarar.scoring.judges import Kind
from lorarar.scoring.score_table import ByPair, Row, by_pair, read
from slurm.local import cores
from stages.shared import task_records
from stages.shared.context import Context
from stages.shared.scoring_models import model_names
from stages.shared.trained import TRAINED, Trained

PAPER_TABLES = ("table_1_mars2", "table_a2_standard_metrics")
"""MARS² and standard metrics on SDXL in data/paper_results.yaml."""


class ReportInputs:
    """Files of the earlier stages, read once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        results = context.results
        self.judge = _json(results / "judge.json")
        known = context.drawn and context.drawn_scheme == "paper"  # to the recogniser
        self.quality = _json(results / "quality.json") if known else {}
        self.views = _json(results / "ranking.json")
        self.study = {path.parent.name: _json(path) for path in sorted((results / "study").glob("*/results.json"))}
        self.curve = _columns(results / "plots" / "hypernet.csv")
        self.paper = yaml.safe_load(Path("data/paper_results.yaml").read_text(encoding="utf-8"))
        self.records = task_records.records(context)
        self.times: dict[str, Any] = {
            "hours": {
                stage: round(sum(record["seconds"] for record in found) / 3600, 4)
                for stage, found in self.records.items()
            },
            "tasks": {stage: len(found) for stage, found in self.records.items()},
            "splits": {},
        }

    @cached_property
    def provenance(self) -> tables.Provenance:
        """Hashes of all that dvc.lock says went into the stages before this one."""
        context = self.context
        used = [stage for name, stage in self.lock.items() if name.partition("@")[0] not in ("base", "study", "report")]
        read = {item["path"]: item.get("md5") for stage in used for item in stage.get("deps", [])}
        code = {path: md5 for path, md5 in read.items() if path.startswith(("lorarar/", "stages/", "slurm/"))}
        data = {path: md5 for path, md5 in read.items() if path.startswith("data/")}
        params = {
            **context.params.model_dump(include={"seed", "seeds", "evaluate"}),
            **context.knobs.model_dump(),
        }
        judge = self.judge["judge"]
        return tables.Provenance(context.base, context.params.seed, _short(params), _short(code), _short(data), judge)

    @cached_property
    def lock(self) -> dict[str, Any]:
        """Stages of dvc.lock."""
        try:
            return yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"dvc.lock: cannot be read ({error!r}); run this stage by `dvc repro report`") from None

    def evidence(self, split: Split) -> panels.Evidence:
        """All that is known of a split."""
        context, provenance = self.context, self.provenance
        methods = context.methods
        metrics = {m: _json(context.results / "metrics" / f"{m}-{split}.json") for m in methods}
        rows = {m: by_pair(read(context.artifacts / "score" / f"{m}-{split}.parquet")) for m in methods}
        right = {m: {pair: [row.right for row in found] for pair, found in rows[m].items()} for m in methods}
        # The paper's tables are about the test split, one of them about KOALA, the others about SDXL.
        named = ("table_3_mars2_koala_700m", "") if context.base == "koala" else PAPER_TABLES
        mars2, similarity = (self.paper.get(name, {}) if split == "test" else {} for name in named)
        of_pairs = zip(*context.pairs(split), strict=True)
        subjects, styles = ({member.name: member.title for member in members} for members in of_pairs)
        titles = {member.name: member.title for member in context.members}
        found = claims.examine(right, self.paper["table_1_mars2"])
        modes = {m: failures.modes(rows[m]) for m in methods}
        worst = {m: failures.worst(rows[m]) for m in methods if m in METHODS}
        fitted = self._fitted(split, metrics)
        near = self._neighbours(split, rows)
        one = panels.Evidence(
            split=split,
            metrics=metrics,
            rows=rows,
            titles=titles,
            tables={},
            claims=found,
            modes=modes,
            worst=worst,
            look=self._look(split),
            paper=mars2,
            fitted=fitted,
            neighbours=near,
        )
        compared = {m: of for m, of in right.items() if m in METHODS}
        best = crossed.best_set(compared) if len(compared) > 1 else []
        made = {
            "mars2": tables.mars2_table(metrics, mars2, split, self.judge, provenance, best),
            "similarity": tables.similarity_table(metrics, similarity, split, self.judge, provenance),
            "differences": tables.differences_table(right, metrics, split, provenance),
            **({"power": power.table(compared, split, provenance)} if len(compared) > 1 else {}),
            "mars2-by-subject": tables.breakdown_table(right, "subject", subjects, split, provenance),
            "mars2-by-style": tables.breakdown_table(right, "style", styles, split, provenance),
            "claim": claims.table(found, split, provenance),
            "modes": failures.modes_table(modes, split, one.n, provenance),
            "footprint": footprint.table(
                self.times["splits"].get(split, {}), metrics, self.paper["table_2_footprint"], split
            ),
        }
        if worst:
            made["worst"] = failures.worst_table(worst, titles, split, provenance)
        if fitted:
            made["coefficients"] = coefficients.table(fitted, split, provenance)
        if near:
            made["neighbours"] = failures.neighbours_table(near, titles, split, provenance)
        merged = {m: [row for of in rows[m].values() for row in of] for m in methods if m in METHODS}
        if len(merged) > 1:
            views = self._views(split, merged)
            made["ranking"] = ranking.ranking_table(ranking.headline(merged), views, split, self.judge, provenance)
        if self.quality:
            made["opinions"] = trust.opinions_table(metrics, self.quality["pairs"], split, provenance)
        one.tables.update(made)
        return one

    def _views(self, split: Split, rows: Mapping[str, Sequence[Row]]) -> list[ranking.View]:
        """All other ways to rank the methods: by scores and seeds, and what stages ranking and quality found."""
        found = ranking.other_scores(rows) + [ranking.View(**view) for view in self.views[split]]
        if self.quality:
            known = {method: self.quality["pairs"][f"{method}-{split}"] for method in rows}
            scores = {method: figures["both"] for method, figures in known.items()}
            number = min(figures["n_images"] for figures in known.values())
            name = "the recogniser (has seen the truth: a check, no judge)"
            found.append(ranking.View("judge", name, scores, number))
        return [*found, *ranking.by_seed(rows)]

    def _look(self, split: Split) -> panels.Look:
        context, members = self.context, {member.name: member for member in self.context.members}

        def look(method: str, pair: tuple[str, str], index: int) -> pictures.Picture:
            if method in ("subject", "style"):
                return pictures.read(context.pictures(members[pair[method == "style"]])[index])
            return pictures.read(context.artifacts / "generate" / method / split / "+".join(pair) / f"{index:02}.png")

        return look

    def _fitted(self, split: Split, metrics: Mapping[str, Any]) -> list[coefficients.Fitted]:
        """Coefficients of the methods that have some; their costs go into `times`."""
        context = self.context
        pairs = {pair_name(*pair): pair for pair in context.pairs(split)}
        members = {member.name: member for pair in pairs.values() for member in pair}
        bank = {name: Adapter.load(context.adapter(member)) for name, member in members.items()}
        adapters = {name: (bank[subject.name], bank[style.name]) for name, (subject, style) in pairs.items()}
        measured: dict[str, Any] = {}
        found = []
        for row in TRAINED.values():
            if row.method not in metrics or row.coefficients is None:
                continue
            folder = context.artifacts / row.name
            if row.per_pair:
                results = {name: row.load(folder / f"{name}.safetensors") for name in pairs}
                of_pairs = {name: row.coefficients(results[name], *adapters[name]) for name in pairs}
                measured[row.method] = {"parameters": _size(of_pairs), **self._training(row, pairs)}
            else:
                network = row.load(folder / f"{row.name}.safetensors")
                of_pairs, seconds = footprint.predicted(network, adapters)
                measured[row.method] = {
                    "seconds": footprint.quartiles(seconds),
                    "parameters": sum(weight.numel() for weight in network.parameters()),
                }
                added = footprint.extra(network, *next(iter(adapters.values())))
                if added is not None:
                    measured[row.method]["extra_mb"] = round(added, 1)
            found.append(coefficients.Fitted.stack(row.method, of_pairs))
        self.times["splits"][split] = measured
        return found

    def _training(self, row: Trained, pairs: Collection[str]) -> dict[str, Any]:
        """Time and memory of a row's tasks on these pairs, as far as their records are here."""
        measured: dict[str, Any] = {}
        records = [record for record in self.records.get(row.name, []) if record["name"] in pairs]
        if records:
            given = self.context.params.jobs[row.name]
            # One thread takes the same processor time on a busy machine; a GPU or several threads have only the clock.
            clock = "cpu_seconds" if (given.gpus, given.cpus) == (0, 1) else "seconds"
            measured["seconds"] = footprint.quartiles([record[clock] for record in records])
        if records and "generate" in self.records:
            held, sampling = (
                median(record["memory_mb"] for record in those) for those in (records, self.records["generate"])
            )
            measured["extra_mb"] = held - sampling
        return measured

    def _neighbours(self, split: Split, rows: Mapping[str, ByPair]) -> list[failures.Neighbour]:
        """Nearest training neighbours, where the models that see them are files of the base."""
        context, methods = self.context, [method for method in rows if method in METHODS]
        names = model_names(context)
        if not methods or not all(Path(name).is_dir() for name in (names.clip, names.dino)):
            return []
        from lorarar.scoring.folder import similarity_models

        models = similarity_models(names.clip, names.dino)
        subjects, styles = zip(*context.pairs(split), strict=True)
        sides: list[tuple[Kind, Any, Sequence[Subject | Style], Sequence[Subject | Style]]] = [
            ("subject", models["dino"], subjects, context.subjects),
            ("style", models["clip"], styles, context.styles),
        ]
        found = []
        for kind, model, own, bank in sides:
            training = [member for member in bank if member.split == "train"]
            features = {
                member.name: model.images([pictures.read(path) for path in context.pictures(member)])
                for member in {member.name: member for member in (*own, *training)}.values()
            }
            for name in dict.fromkeys(member.name for member in own):
                similar = {other.name: float((features[name] @ features[other.name].T).mean()) for other in training}
                nearest = max(similar, key=similar.__getitem__)
                shares = {m: failures.shares(rows[m], kind, name) for m in methods}
                place = ("subject", "style").index(kind)
                n = sum(len(images) for pair, images in rows[methods[0]].items() if pair[place] == name)
                found.append(failures.Neighbour(kind, name, nearest, similar[nearest], shares, n))
        return found

    def summary(self, splits: list[panels.Evidence]) -> list[tuple[str, str]]:
        """The head of the page."""
        context = self.context
        facts = [("World", f"`{context.base}`, seed {context.params.seed}, judge `{self.provenance.judge}`")]
        facts += [
            (f"Split {one.split}", f"{one.n} by each of {len(one.metrics)} methods and controls") for one in splits
        ]
        for one in splits:
            if any(claim.difference for claim in one.claims):
                counts = [(word, sum(claim.verdict == word for claim in one.claims)) for word in claims.VERDICTS]
                said = ", ".join(f"{number} {word}" for word, number in counts if number)
                whole = f"that LoRA.rar beats all {len(one.claims)} competitors of the paper"
                text = f"{whole}: **{claims.overall(one.claims)}** ({said})"
                facts.append((f"Claim, {one.split}", text))
        if (context.results / "experiments.html").is_file():
            facts.append(("Ablations", "[experiments.html](experiments.html): settings and open questions"))
        return facts

    def facts(self) -> list[tuple[str, str]]:
        """Provenance: commit, inputs, hours, software and parameters."""
        context = self.context
        outs = {
            Path(item["path"]).name: item["md5"][:12]
            for stage in self.lock.values()
            for item in stage.get("outs", [])
            if item["path"].startswith(str(context.artifacts)) and "generate" not in item["path"] and "md5" in item
        }
        hours, tasks = self.times["hours"], self.times["tasks"]
        kept = [name for name in ("bank", *TRAINED) if name in outs]
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
        facts = [
            ("Command", "`make repro`, or `dvc repro`"),
            ("Commit", _commit()),
            ("Made from", str(self.provenance).removeprefix("Made from: ")),
            ("Artifacts", ", ".join(f"{name} `{outs[name]}`" for name in kept)),
            (
                "Hours of work",
                ", ".join(f"{stage} {hours[stage]:.2f} ({tasks[stage]} tasks)" for stage in hours)
                or "not known: the records of the tasks are not here",
            ),
            ("Software", f"Python {sys.version.split()[0]}, {versions}; {cores()} cores"),
        ]
        for section, knobs in context.knobs.model_dump().items():
            facts.append((f"params: {section}", "; ".join(f"`{key}` {_words(value)}" for key, value in knobs.items())))
        return [(name, text) for name, text in facts if text]


def _size(fitted_to: Mapping[str, Any]) -> int:
    """Coefficients that one pair has."""
    return sum(len(m) for both in next(iter(fitted_to.values())).values() for m in both)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return "all" if value is None else str(value)


def _commit() -> str:
    """The commit whose code made this, and whether the tree had further changes; empty outside of git."""
    code = ["lorarar", "stages", "slurm", "data", "params.yaml", "dvc.yaml"]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short=12", "HEAD")
    changed = " with changes that were not committed yet" if found and git("status", "--porcelain", "--", *code) else ""
    return f"`{found}`{changed}" if found else ""


def _columns(path: Path) -> dict[str, list[float]]:
    """A table of numbers by column; empty if there is none."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def _short(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run `dvc repro`") from None
