"""Writes results/ from the registry and the benchmarks alone: the paper's tables and figures, a table of all finished
runs with the same prompts, noise and weights, a sample grid and the galleries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
from filelock import FileLock
from omegaconf import OmegaConf
from tqdm import tqdm

from vdq.data.contact_sheet import contact_sheet
from vdq.data.samples import read_sample
from vdq.errors import UserError
from vdq.files import write_text
from vdq.installation import CONF
from vdq.metrics.catalogue import PSNR, VQA_A, VQA_T
from vdq.models.shapes import ShapesModel
from vdq.quant.layers import projections
from vdq.quant.stats import Stats
from vdq.reports import ablation, neighbours, paper_report, paper_tables
from vdq.reports.execution import latex, read_benchmarks, rows_of, summary, table6, times_figure
from vdq.reports.figures import ranges_figure
from vdq.reports.frames import FIGURES, frames_figure
from vdq.reports.gallery import write_gallery
from vdq.reports.tables import comparison, write
from vdq.reports.uncertainty import Noise
from vdq.shapes.measure import departures
from vdq.stages.configuration import option, options
from vdq.stages.experiment import Experiment
from vdq.stages.identity import changed_fields
from vdq.stages.run_folder import intact
from vdq.tracking.registry import read_config, runs
from vdq.tracking.versions import newest

log = logging.getLogger(__name__)
PROMPT_SETS = {"shapes": ("shapes", "shapes_short")}  # of models with prompts of their own, by model.name
GRID_VIDEOS, GRID_FRAMES, GRID_COLUMNS = 48, 4, 4
EXCERPT = {"prompts": 2, "quality": 50, "difference_quality": 40}  # of the gallery: small enough to be committed
SETS = ("opensora", "ucf101")  # the paper's first and second prompt set
HEADING = """# {name}: {prompts} prompts, model {model}

Every row is a finished run and `run` is its signature. Written by `python run.py 'stages=[tabulate]'`."""

FOLLOWING = (
    "{following} of {of} samples follow their prompt in shape, color, size, background and motion, measured from the "
    "pixels of all their frames. Red: what a sample shows instead."
)


def run(experiment: Experiment) -> None:
    runs_folder = Path(experiment.cfg.paths.runs)
    runs_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(runs_folder / "tabulate.lock"):  # two sweeps may end at once
        _run(experiment)


def _run(experiment: Experiment) -> None:
    folder = Path(experiment.cfg.paths.results) / experiment.cfg.model.name
    measured = _write_benchmarks(experiment, folder)
    registry = _compared(runs(experiment.cfg.paths.runs))
    find, noise = _finder(experiment, registry), Noise.read(folder)
    main_set = experiment.prompts.name == _prompt_sets(experiment)[0]
    figures = _write_figures(experiment, find, folder) if main_set else []
    table = _finished(experiment, registry)
    if table.empty and not figures and not measured:
        raise UserError(
            f"paths.runs={experiment.cfg.paths.runs} holds no finished run of these prompts; sample and score one first"
        )
    if len(table):
        _write_all_runs(experiment, table, folder)
        _write_paper(find, folder, noise)
        if main_set:
            _write_galleries(experiment, table, folder)
    if main_set and len(registry):
        _write_neighbours(experiment, registry, folder, noise)
    log.info("tabulate: %d runs and %d figures written to %s", len(table), len(figures), folder)


def _compared(registry: pd.DataFrame) -> pd.DataFrame:
    """With `changed` by today's files of the methods, which may have changed since a run was made."""
    if registry.empty:
        return registry
    return registry.assign(changed=[_changed(run) for _, run in registry.iterrows()])


def _changed(run: pd.Series) -> str:
    content = read_config(run["folder"])
    if not content.get("quant"):
        return run["changed"]
    return changed_fields(
        OmegaConf.create({name: content.get(name) for name in ("artefact", "bits", "alpha", "quant")})
    )


def _write_all_runs(experiment: Experiment, table: pd.DataFrame, folder: Path) -> None:
    reference, name = experiment.reference or experiment, experiment.prompts.name
    heading = HEADING.format(name=name, prompts=len(reference.prompts.evaluation), model=experiment.cfg.model.name)
    write(table, folder / f"runs_{name}", heading)
    print(comparison(table))
    this = table[table["signature"].isin([reference.identity.signature, experiment.identity.signature])]
    write_text(folder / f"run_{name}.md", comparison(this) + "\n")
    _write_grid(reference, folder / f"samples_{name}.png")


def _write_grid(reference: Experiment, path: Path) -> None:
    """The first samples in full precision; those of the testbed with what they show otherwise than their prompts."""
    prompts = reference.prompts.evaluation[:GRID_VIDEOS]
    samples = [read_sample(reference.folder, index)["frames"] for index in range(len(prompts))]
    judged = {}
    if isinstance(reference.model, ShapesModel):
        wrong = [departures(prompt, frames.numpy()) for prompt, frames in zip(prompts, samples, strict=True)]
        judged["heading"] = FOLLOWING.format(following=wrong.count({}), of=len(wrong))
        judged["remarks"] = [", ".join(f"{name}: {shown}" for name, shown in each.items()) for each in wrong]
    contact_sheet(samples, prompts, GRID_FRAMES, path, GRID_COLUMNS, **judged)


def _write_benchmarks(experiment: Experiment, folder: Path) -> bool:
    """Whether there are any, of this model or of none."""
    benchmarks = read_benchmarks(Path(experiment.cfg.paths.runs), experiment.cfg.model.name)
    if benchmarks:
        write_text(folder / "table6.md", table6(benchmarks))
        write_text(folder / "table6.tex", latex(rows_of(benchmarks)))
        write_text(folder / "table6_summary.md", summary(benchmarks))
        write_text(folder / "table6.csv", rows_of(benchmarks).to_csv(index=False))
        times_figure(benchmarks, folder / "table6.png")
    return bool(benchmarks)


def _write_paper(find: paper_tables.Find, folder: Path, noise: Noise) -> None:
    """Tables of which at least one quantized run is there."""
    for name in tqdm(paper_tables.TITLES, desc="tables", unit="table", delay=2):
        filled = paper_tables.fill(name, find, noise)
        if "run" in filled and filled.loc[~filled["method"].str.startswith("fp16"), "run"].notna().any():
            paper_report.write_table(name, filled, folder, noise)


def _write_neighbours(experiment: Experiment, registry: pd.DataFrame, folder: Path, noise: Noise) -> None:
    """Every seed's simulated runs of as many prompts as conf/experiment/neighbours.yaml has, or as are asked for."""
    full = experiment.variant(quant="fp16")
    plan = OmegaConf.load(CONF / "experiment" / "neighbours.yaml")
    prompts = full.cfg.dataset.num_prompts or plan.dataset.num_prompts
    fields = {"dataset.num_prompts": min(prompts, len(full.prompts.evaluation))}
    seeds = [int(seed) for seed in registry["seed"].dropna().unique()]
    references = [full.variant(fields=fields | {"seed": seed}).identity.signature for seed in seeds]
    found = _comparable(experiment, registry, references)
    if "backend" in found:
        found = found[found["backend"].fillna("") == ""]
    changed = found["changed"] != ""
    if found.loc[~changed, "seed"].nunique() > 1:
        table = neighbours.by_seed(found[~changed])
        neighbours.write_neighbours(table, fields["dataset.num_prompts"], folder, noise)
    own = found["quant"] == ablation.METHOD
    if (own & changed).any() and (own & ~changed).any():
        ablation.write_ablation(neighbours.by_seed(found[own]), fields["dataset.num_prompts"], folder, noise)


def _write_figures(experiment: Experiment, find: paper_tables.Find, folder: Path) -> list[Path]:
    """Figure 3 from the statistics, the others from the runs that are there."""
    written = []
    for name, figure in FIGURES.items():
        found = [(label, find(SETS[0], *row)) for label, row in figure.rows]
        present = [(label, run) for label, run in found if run is not None]
        shown = [(f"{label}, run {run['signature']}", Path(run["folder"])) for label, run in present]
        if len(shown) > 1:
            if lacking := [label for label, run in found if run is None]:
                log.warning("tabulate: %s has no rows of runs that are not there: %s", name, ", ".join(lacking))
            prompts = experiment.prompts.evaluation
            index = figure.prompt % len(prompts)  # of a run with few prompts, another one
            written.append(folder / f"{name}.png")
            frames_figure(shown, index, prompts[index], written[-1])
    if experiment.identity.calibrates and intact(Stats.load, experiment.files.stats):
        try:
            ranges_figure(
                Stats.load(experiment.files.stats),
                projections(experiment.model.denoiser, experiment.model.quantizable),
                experiment.variant(quant="asq").method.alpha,
                folder / "figure3.png",
            )
            written.append(folder / "figure3.png")
        except UserError as error:  # no weights on this machine
            log.warning("tabulate: figure3 is left out: %s", error)
    return written


def _write_galleries(experiment: Experiment, table: pd.DataFrame, folder: Path) -> None:
    """Videos of every run beside the reference, below the tables: the whole gallery, and an excerpt of few prompts."""
    tables = [path for name in (*paper_tables.TITLES, "table6") if (path := folder / f"{name}.md").is_file()]
    if "backend" in table:  # integers of a method stand beside its simulation
        table = table.assign(quant=(table["quant"] + " " + table["backend"].fillna("")).str.strip())
    paths, title = experiment.cfg.paths, f"Quantized {experiment.cfg.model.name}"
    shown = {"metrics": tuple(value.name for value in (VQA_A, VQA_T, PSNR)), "title": title}
    write_gallery(table, tables, Path(paths.gallery), **shown)
    note = f"An excerpt: `python run.py 'stages=[tabulate]'` writes the whole gallery to `{paths.gallery}`."
    write_gallery(table, tables, Path(paths.excerpt), note=note, **shown, **EXCERPT)


def _prompt_sets(experiment: Experiment) -> tuple[str, str]:
    """The options of `dataset` that stand for the first and the second prompt set of the paper's tables."""
    return PROMPT_SETS.get(experiment.cfg.model.name, SETS)


def _finder(experiment: Experiment, registry: pd.DataFrame) -> Callable[[str, str, int, int], pd.Series | None]:
    """Finished runs by the paper's names: data set, method and bit-widths."""

    @cache
    def reference(dataset: str) -> Experiment | None:
        """Full precision on a prompt set."""
        option = _prompt_sets(experiment)[SETS.index(dataset)]
        try:
            full = experiment.variant(dataset=option, quant="fp16")
            _ = full.prompts
            return full
        except UserError as error:  # prompts that were never fetched; then there are no runs of them either
            log.warning("tabulate: no tables of dataset=%s: %s", option, error)
            return None

    def find(dataset: str, method: str, weight_bits: int, act_bits: int) -> pd.Series | None:
        full = reference(dataset)
        if full is None or registry.empty:
            return None
        if method == "fp16":
            wanted = full
        elif method == paper_tables.OTHER_NOISE:
            wanted = full.variant(fields={"seed": full.cfg.seed + 1})
        else:
            try:
                wanted = full.variant(quant=method, bits=f"w{weight_bits}a{act_bits}")
            except UserError:  # more time ranges than steps
                return None
        rows = registry[registry["signature"] == wanted.identity.signature]
        judges = registry.loc[registry["signature"] == full.identity.signature, "metrics"]
        rows = rows[rows["metrics"].isin(judges)]  # scored by the networks that scored full precision
        return None if rows.empty else rows.iloc[-1]

    return find


def _finished(experiment: Experiment, registry: pd.DataFrame) -> pd.DataFrame:
    """Runs of unchanged methods with the same reference, the same judges and the alphas of this configuration."""
    if registry.empty:
        return registry
    table = _comparable(experiment, registry, [(experiment.reference or experiment).identity.signature])
    table = table[table["changed"] == ""]
    return table.sort_values(["weight_bits", "act_bits", "quant"], ascending=[False, False, True], ignore_index=True)


def _alphas(experiment: Experiment) -> dict[str, float | None]:
    """The alpha that every file of conf/quant has with this configuration's conf/alpha; None for none."""
    trees = {name: {"alpha": experiment.cfg.alpha, "quant": option("quant", name)} for name in options("quant")}
    return {name: OmegaConf.create(tree).quant.get("alpha") for name, tree in trees.items()}


def _comparable(experiment: Experiment, registry: pd.DataFrame, references: list[str]) -> pd.DataFrame:
    """Runs with one of these references, with the judges of all of them and the alphas of this configuration, of the
    newest versions of the code.
    """
    judges = registry.loc[registry["signature"].isin(references), "metrics"]
    alphas = registry["quant"].map(_alphas(experiment))
    kept = registry["reference"].isin(references) & registry["metrics"].isin(judges)
    return newest(registry[kept & (alphas.isna() | (alphas == registry["alpha"]))])
