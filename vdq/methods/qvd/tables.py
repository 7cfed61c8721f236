"""What QVD tells of a model beside the report of layers: coverage, temporal features and the table in their place."""

from typing import Any

from torch import Tensor, nn

from vdq.methods.base import Table
from vdq.methods.qvd.scri import channel_ranges, coverage
from vdq.methods.qvd.temporal import Trial, choose
from vdq.models.family import TimestepTable
from vdq.quant.affine import QParams, qparams_from_range
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import projections
from vdq.quant.parts import Shift, Smoothing
from vdq.quant.report import MEGABYTE
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.time_ranges import TimeRanges

COMPARED_BITS = (8, 6, 4)  # of temporal features, beside those that are used
FLOAT_BYTES = 4


def coverage_table(denoiser: nn.Module, stats: Stats, state: QuantState) -> Table:
    """Coverage (vdq.methods.qvd.scri) of every layer of the statistics' range with its quantizer, and without shift and
    factors with one of the same format.
    """
    rows = []
    for p in projections(denoiser):
        if p.fqn in state.layers and p.input_fqn in stats.layers:
            before, after = _coverages(state.layers[p.fqn], stats.layers[p.input_fqn])
            rows.append({"fqn": p.fqn, "coverage_before": before, "coverage_after": after})
    means = [sum(row[f"coverage_{when}"] for row in rows) / len(rows) for when in ("before", "after")]
    return Table(rows, "channels span {:.1%} of the activation levels, {:.1%} after SCRI".format(*means))


def temporal_table(features: dict[str, Tensor], bits: int) -> Table:
    """The best quantizer of every family for every temporal layer at `bits` and, for comparison, COMPARED_BITS; those
    of a layer and bit-width are in the order of the choice, so the first is the one that is used.
    """
    rows, used = [], []
    for fqn, values in features.items():
        trials = {tried: choose(values, tried) for tried in sorted({bits, *COMPARED_BITS}, reverse=True)}
        rows += [_trial_row(fqn, tried, trial) for tried, of_bits in trials.items() for trial in of_bits]
        best = trials[bits][0]
        used.append(
            f"{fqn} {best.candidate.family}, step-difference error {best.error:.4f}, discriminability {best.score:.4f}"
        )
    return Table(rows, f"temporal features at {bits} bits: {'; '.join(used)}")


def timestep_table(table: TimestepTable) -> Table:
    """Size of what a fixed schedule computes once."""
    row = {
        "table_mb": table.numbers * FLOAT_BYTES / MEGABYTE,
        "reused_mb_a_row": table.reused_numbers * FLOAT_BYTES / MEGABYTE,
        "layers_not_needed": " ".join(table.layers),
        "weights_not_needed_mb": table.weights * FLOAT_BYTES / MEGABYTE,
    }
    summary = (
        "what depends on the step alone is computed once a schedule, with the same bits on one machine: "
        "{table_mb:.2f} MB in fp32, or {reused_mb_a_row:.2f} MB a batch row with all blocks' modulation, as sampling "
        "keeps it; beside it no step needs {layers_not_needed} ({weights_not_needed_mb:.2f} MB). HTDQ is then moot: "
        "temporal_bits=null has the exact table at the same cost"
    )
    return Table([row], summary.format(**row))


def _trial_row(fqn: str, bits: int, trial: Trial) -> dict[str, Any]:
    return {
        "fqn": fqn,
        "bits": bits,
        "family": trial.candidate.family,
        "parameter": trial.candidate.parameter,
        "step_difference_error": trial.error,
        "discriminability": trial.score,
        "frozen_channels": trial.frozen,
        "relative_l2": trial.relative_l2,
    }


def _coverages(quant: LayerQuant, stats: LayerStats) -> tuple[float, float]:
    act = quant.act
    ranges = TimeRanges(quant.num_steps, act.num_ranges)
    lo, hi = (bound.to(act.scale.device) for bound in channel_ranges(stats.min, stats.max, ranges))
    form = {"bits": act.bits, "symmetric": act.symmetric}
    before = coverage(lo, hi, qparams_from_range(lo.amin(-1), hi.amax(-1), **form), **form)
    if (shift := quant.part(Shift.kind)) is not None:
        lo, hi = lo - shift.values, hi - shift.values
    if (smoothing := quant.part(Smoothing.kind)) is not None:
        lo, hi = lo / smoothing.factors, hi / smoothing.factors
    return before, coverage(lo, hi, QParams(act.scale, act.zero_point), **form)
