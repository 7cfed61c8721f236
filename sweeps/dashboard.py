"""The W&B workspace and report of this project, as code: ``python sweeps/dashboard.py --entity E --project P``.

Saves both when you are logged in (``wandb login``), and otherwise prints what it would create. Its panels read the
configuration, summary and tables that `vdq.tracking.wandb` logs; ``tests/integration/test_dashboard.py`` holds the two
together.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import wandb
import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from vdq.metrics.catalogue import CLIPSIM, PSNR, Value

TITLE = "Static quantization of video diffusion"
HEAT_MAP = "vdq-layer-errors"
METHOD, ALPHA = wr.Config("quant.name"), wr.Config("quant.alpha")
REPORT, VIDEOS = "quantization_report", "videos"
LEGEND = "${config:quant.name} ${summary:bits}"
WIDE = wr.Layout(w=24, h=14)

# A cell for each run and layer. Vega-Lite; W&B replaces ${field:...} by the columns that a panel names.
HEAT_MAP_SPEC = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"name": "wandb"},
    "mark": "rect",
    "encoding": {
        "x": {"field": "${field:run}", "type": "nominal", "title": "run"},
        "y": {"field": "${field:layer}", "type": "nominal", "title": "layer", "sort": None},
        "color": {"field": "${field:error}", "type": "quantitative", "title": "relative error of the weight"},
    },
}


@dataclass(frozen=True)
class Question:
    """A section of the workspace and a chapter of the report."""

    title: str
    text: str
    panels: list[wr.Panel]
    filters: str = ""  # of the report's chapter; a workspace has one set of runs for all


def questions(entity: str) -> list[Question]:
    """Fresh panels each time: the library ties a panel to the place where it stands."""
    return [
        Question(
            "Alpha curves",
            "Quality against smoothing strength, one point a run, grouped by method. `wandb sweep sweeps/alpha.yaml`",
            [_scatter(CLIPSIM, "alpha", ALPHA), _scatter(PSNR, "alpha", ALPHA)],
            filters="SummaryMetric('num_prompts') = 16",  # as conf/experiment/alpha.yaml has
        ),
        Question(
            "Bits against quality",
            "Each method at each bit-width, and what the model weighs. `wandb sweep sweeps/testbed.yaml`",
            [
                _scatter(PSNR, "weight bits", wr.SummaryMetric("weight_bits")),
                _scatter(CLIPSIM, "weight bits", wr.SummaryMetric("weight_bits")),
                _scatter(PSNR, "size in MB", wr.SummaryMetric("size_mb")),
            ],
        ),
        Question(
            "Error of each layer",
            "Relative error of the quantized weight, by run and layer; the table has every column of report.csv.",
            [_heat_map(entity), wr.WeavePanelSummaryTable(table_name=REPORT, layout=WIDE)],
        ),
        Question(
            "Videos side by side",
            "Each prompt: the quantized video, the full-precision video of the same noise, and their scores.",
            [wr.WeavePanelSummaryTable(table_name=VIDEOS, layout=WIDE)],
        ),
    ]


def workspace(entity: str, project: str) -> ws.Workspace:
    sections = [ws.Section(name=q.title, panels=q.panels, is_open=True) for q in questions(entity)]
    runs = ws.RunsetSettings(groupby=[expr.Config(METHOD.name)])
    return ws.Workspace(entity=entity, project=project, name=TITLE, sections=sections, runset_settings=runs)


def report(entity: str, project: str) -> wr.Report:
    blocks: list = [wr.TableOfContents()]
    for question in questions(entity):
        groups = [f"config.{METHOD.name}"]
        runset = wr.Runset(entity=entity, project=project, groupby=groups, filters=question.filters)
        grid = wr.PanelGrid(runsets=[runset], panels=question.panels)
        blocks += [wr.H2(question.title), wr.MarkdownBlock(question.text), grid]
    return wr.Report(entity=entity, project=project, title=TITLE, blocks=blocks)


def describe(entity: str, project: str) -> Iterator[str]:
    yield f"would create in {entity}/{project}: the workspace and the report {TITLE!r}, with"
    for question in questions(entity):
        yield f"\n{question.title}. {question.text}"
        yield from (f"  {type(panel).__name__}: {', '.join(keys(panel))}" for panel in question.panels)
    yield "\nLog in with `wandb login` and run this again to save them."


def keys(panel: wr.Panel) -> list[str]:
    """What a panel reads, as ``config:name``, ``summary:name``, ``table:name`` or ``table:name.column``."""
    if isinstance(panel, wr.ScatterPlot):
        kinds = {wr.Config: "config", wr.SummaryMetric: "summary"}
        return [f"{kinds[type(axis)]}:{axis.name}" for axis in (panel.x, panel.y)]
    if isinstance(panel, wr.CustomChart):
        table = panel.query["summaryTable"]["tableKey"]
        return [f"table:{table}.{column}" for field, column in panel.chart_fields.items() if field != "run"]
    return [f"table:{panel.table_name}"]


def save(entity: str, project: str) -> None:
    try:
        wandb.Api().create_custom_chart(entity, HEAT_MAP, "Error of each layer", "vega2", "private", HEAT_MAP_SPEC)
    except wandb.Error as error:  # such as: there is one of this name already
        print(f"custom chart {entity}/{HEAT_MAP} was not created: {error}")
    for view in (workspace(entity, project), report(entity, project)):
        view.save()
        print(view.url)


def _scatter(value: Value, by: str, x: wr.Config | wr.SummaryMetric) -> wr.ScatterPlot:
    y, title = wr.SummaryMetric(value.name), f"{value.title} by {by}"
    return wr.ScatterPlot(title=title, x=x, y=y, legend_template=LEGEND, layout=wr.Layout(w=8, h=8))


def _heat_map(entity: str) -> wr.CustomChart:
    fields = {"run": "name", "layer": "fqn", "error": "weight_error"}
    chart = wr.CustomChart.from_table(REPORT, chart_fields=fields, chart_strings={})
    chart.chart_name, chart.layout = f"{entity}/{HEAT_MAP}", WIDE
    return chart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team; without it your default one")
    parser.add_argument("--project", default="vdq")
    arguments = parser.parse_args()
    if wandb.login(prompt=False, verify=False):
        save(arguments.entity or wandb.Api().default_entity, arguments.project)
    else:
        print("\n".join(describe(arguments.entity or "your-entity", arguments.project)))


if __name__ == "__main__":
    main()
