"""Measures what methods cost: linears and blocks with random weights, and the configured model's whole sampler.

Everything of a part is measured in turn in one process, against full precision, the arithmetic floor and other
libraries; conf/benchmark says what. Each part leaves a file in runs/benchmarks.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vdq.benchmark import block, family, gemm, peers, record, sampling, targets, work
from vdq.benchmark.machine import Machine
from vdq.benchmark.plan import BLOCK, DRIVER, SAMPLER, Plan
from vdq.benchmark.rounds import FULL, INTEGER, SIMULATED, Contender, measure
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.schedule import Schedule
from vdq.errors import UserError
from vdq.files import write_json
from vdq.installation import CONF
from vdq.models.base import VideoModel
from vdq.models.one_block import OneBlock
from vdq.quant.layers import receiving_modules
from vdq.quant.state import QuantState
from vdq.reports import execution, paper_tables
from vdq.stages import sample
from vdq.stages.compute import load_denoiser
from vdq.stages.experiment import Experiment
from vdq.stages.identity import signature_of

log = logging.getLogger(__name__)
DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
INTEGER_BACKENDS = {"cpu": "int8_cpu", "cuda": "int8_cuda"}
XL = {"hidden_size": 1152, "num_heads": 16, "tokens": 4096}  # what the targets are about
NOTE = "random weights, speed only"
DRIVEN = "through this project"

Runs = list[tuple[str, Experiment]]


def run(experiment: Experiment) -> None:
    plan = experiment.benchmark
    machine = _machine(experiment)
    runs = _runs(experiment, plan, machine)
    shallow = _shallow(experiment, plan)
    with torch.no_grad():
        one = _one_block(experiment, plan, shallow)
        peaks = gemm.peaks(_shapes(one), one.tokens, machine)
        log.info(
            "benchmark: peak of %s %.0f GOP/s, of %s %.0f GOP/s",
            peaks.full_kernel,
            peaks.full / 1e9,
            peaks.integer_kernel,
            peaks.integer / 1e9,
        )
        random = None
        for part in plan.parts:
            skipped: dict[str, str] = {}
            if part == SAMPLER:
                cases = [_sampler(experiment, plan, machine, runs, peaks)]
            elif part == DRIVER:
                cases = [_driver(experiment, plan, machine, shallow, peaks)]
            else:
                random = random or _RandomBlock(experiment, plan, machine, runs, one)
                cases = random.cases(part, peaks, skipped)
            _write(experiment, runs[0][1].identity.bits, machine, part, cases, peaks, skipped)


def _shallow(experiment: Experiment, plan: Plan) -> VideoModel | None:
    """The model with one block of each kind whose speed is measured; None where it is STDiT's block."""
    if not experiment.model.makes_blocks:
        if DRIVER in plan.parts:
            raise UserError(f"benchmark.parts=[{DRIVER}] needs a pipeline of diffusers, such as model=wan2_1_1_3b")
        return None
    if set(plan.parts) == {SAMPLER}:
        return None
    shallow = experiment.model.shallow(plan.call)
    try:
        shallow.check(experiment.sampler)
    except UserError as error:
        raise UserError(f"benchmark.call={plan.call or 'null'}: {error}") from error
    return shallow


def _one_block(experiment: Experiment, plan: Plan, shallow: VideoModel | None) -> OneBlock:
    if shallow is None:
        return family.stdit_block(plan, Schedule(experiment.sampler.steps))
    one = shallow.one_block(experiment.sampler)
    log.info("benchmark: %s", "; ".join(one.blocks.values()))
    return one


def _shapes(one: OneBlock) -> list[tuple[int, int]]:
    """(inputs, outputs) of its linears."""
    linears = (one.net.get_submodule(fqn) for fqn in one.linears)
    return [(linear.in_features, linear.out_features) for linear in linears]


class _RandomBlock:
    """The random block with the parameters of every method."""

    def __init__(self, experiment: Experiment, plan: Plan, machine: Machine, runs: Runs, one: OneBlock) -> None:
        self.plan, self.machine, self.one = plan, machine, one
        self.block = block.RandomBlock(one, machine)
        self.backends = [(name, run.backend) for name, run in runs]
        with tqdm(total=experiment.sampler.steps, desc="benchmark: calibrating", unit="step") as progress:
            stats = self.block.stats(progress.update)
        converted: dict[str, QuantState] = {}  # a method's parameters do not depend on its backend
        self.states = {}
        for name, run in runs:
            quant = run.cfg.quant.name
            if quant not in converted:
                converted[quant] = self.block.state(run.method, stats)
            self.states[name] = converted[quant]

    def cases(self, part: str, peaks: work.Peaks, skipped: dict[str, str]) -> list[dict[str, Any]]:
        one, tokens = self.one, f"{self.one.tokens:,} tokens"
        if part == BLOCK:
            keys = {fqn: "block" if len(one.blocks) == 1 else f"block_{fqn}" for fqn in one.blocks}
            return [self._case(keys[fqn], title, fqn, peaks, skipped) for fqn, title in one.blocks.items()]
        cases = []
        for fqn, (inputs, outputs) in zip(one.linears, _shapes(one), strict=True):
            title = f"Linear {inputs} → {outputs}, {tokens}"
            cases.append(self._case(f"linear_{inputs}x{outputs}", title, fqn, peaks, skipped))
        if one.chain is not None:
            size = self.plan.hidden_size
            title = f"Linear, GELU, linear {size} → {4 * size} → {size}, {tokens}"
            cases.append(self._case("chain", title, one.chain, peaks, skipped))
        return cases

    def _case(self, key: str, title: str, fqn: str, peaks: work.Peaks, skipped: dict[str, str]) -> dict[str, Any]:
        module, x = self.block.full(fqn)
        contenders = block.contenders(self.block, fqn, self.backends, self.states)
        if fqn in self.one.linears:
            contenders += gemm.kernels(len(x), x.shape[-1], module.module.out_features, self.machine)
        if fqn != self.one.chain:
            with tempfile.TemporaryDirectory() as folder:
                base = x if fqn in self.one.blocks else None
                contenders += self._peers(module, x, base, Path(folder), skipped)
        counted = work.count(module, lambda: module(x), lambda fqn: True)
        facts = {"key": key, "note": NOTE} | self.one.facts
        return _measured(title, contenders, self.plan.rounds, self.plan, self.machine, counted, peaks, facts)

    def _peers(
        self, module: nn.Module, x: torch.Tensor, base: torch.Tensor | None, folder: Path, skipped: dict[str, str]
    ) -> list[Contender]:
        """Those that are installed and work; why others are missing goes into `skipped`."""
        expected, found = module(x), []
        for name in tqdm(self.plan.peers, desc="benchmark: peers", unit="peer"):
            peer = peers.PEERS[name]
            reason, made = peer.unavailable(self.machine), []
            if reason is None:
                try:
                    made = peer.contenders(module, x, self.machine, folder)
                except Exception as error:  # of another library: no reason to lose everything else
                    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            if reason is not None and name not in skipped:
                skipped[name] = reason
                log.warning("benchmark: %s left out: %s", name, reason)
            for contender in made:
                error = block.relative_error(torch.as_tensor(contender.run(0)), expected, base)
                contender.facts.update(error=error, note=_suspicion(contender, error))
                found.append(_with_share(contender, module))
        return found


def _with_share(contender: Contender, module: nn.Module) -> Contender:
    """Says how many linears run in integers where not all do; that of a block's constant captions may need none."""
    linears, total = contender.facts.get("linears"), sum(isinstance(part, nn.Linear) for part in module.modules())
    if linears is None or linears >= total:
        return contender
    return replace(contender, computes=f"{contender.computes}; {linears} of {total} linears in integers")


def _suspicion(contender: Contender, error: float) -> str:
    """What speaks against a peer's row, or nothing."""
    if error > peers.MAX_ERROR:
        return f"wrong result, relative error {error:.2f}"
    return "runs in floating point" if contender.facts.get("linears") == 0 else ""


def _sampler(experiment: Experiment, plan: Plan, machine: Machine, runs: Runs, peaks: work.Peaks) -> dict[str, Any]:
    """Rounds are batches of the first `videos` prompts, or repetitions of the first batch."""
    size, prompts = experiment.batch_size, experiment.prompts.evaluation
    if plan.videos is not None and plan.videos > len(prompts):
        raise UserError(f"benchmark.videos={plan.videos} must be at most {len(prompts)}, the evaluation prompts")
    chosen = prompts[: plan.videos or size]
    full = _placed(load_denoiser(experiment), machine)
    conditions = [experiment.model.encode(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    model, sampler = experiment.model, experiment.sampler

    def sample_batch(net: nn.Module, *given: Any) -> Tensor:
        return model.sample(model.reusing(net), *given, sampler)

    batches = sampling.Batches(
        conditions, sample=sample_batch, latent_shape=model.latent_shape, seed=experiment.cfg.seed
    )
    once = batches.sampling(full, experiment.clock)
    linears = receiving_modules(full, experiment.model.quantizable).values()
    facts = {"weight_bytes": sum(linear.weight.nbytes for linear in linears), "weight_sets": 1}
    contenders = [Contender(FULL, FULL, f"torch, {machine.full}", once, facts=facts)]
    for name, run in runs:
        quantized = sample.denoiser(run).to(machine.dtype).to(machine.device)
        facts = block.weight_facts(quantized, QuantState.load(run.files.state))
        kind = SIMULATED if run.backend.simulated else INTEGER
        call = batches.sampling(quantized, run.clock.to(machine.device))
        contenders.append(Contender(name, kind, run.arithmetic, call, facts=facts))
    counted = work.count(full, lambda: once(0), experiment.model.quantizable)
    steps = experiment.sampler.steps
    title = f"Sampler of {experiment.cfg.model.name}, {steps} steps, batches of {len(conditions[0])} prompts"
    facts = {"key": "sampler", "videos": plan.videos, "of_videos": len(prompts), "steps": steps}
    facts |= {"note": NOTE if experiment.model.random else ""}
    rounds = plan.rounds if plan.videos is None else len(conditions)
    return _measured(title, contenders, rounds, plan, machine, counted, peaks, facts)


def _driver(
    experiment: Experiment, plan: Plan, machine: Machine, shallow: VideoModel, peaks: work.Peaks
) -> dict[str, Any]:
    """A sampling through this project beside the plain call of the same pipeline, with the same noise."""
    sampler, clock = experiment.sampler, experiment.clock.to(machine.device)
    net, conditions = shallow.denoiser.to(machine.device), shallow.encode([""])
    noise = PromptNoise(experiment.cfg.seed, [0], None)
    plain = shallow.plain_sampling(net, conditions, sampler)
    ways = {
        FULL: lambda _: plain(noise),
        DRIVEN: lambda _: shallow.sample(net, conditions, noise, clock, sampler),
    }
    expected = ways[FULL](0)
    contenders = [
        Contender(name, FULL, "torch, fp32", run, facts={"error": block.relative_error(run(0), expected)})
        for name, run in ways.items()
    ]
    counted = work.count(net, lambda: ways[FULL](0), shallow.quantizable)
    title = f"Driver of {experiment.cfg.model.name}, one block of each kind, {sampler.steps} steps"
    facts = {"key": DRIVER, "note": NOTE, "steps": sampler.steps, "call": shallow.call}
    return _measured(title, contenders, plan.rounds, plan, machine, counted, peaks, facts)


def _measured(
    title: str,
    contenders: list[Contender],
    rounds: int,
    plan: Plan,
    machine: Machine,
    counted: work.Work,
    peaks: work.Peaks,
    facts: dict[str, Any],
) -> dict[str, Any]:
    with tqdm(total=rounds, desc=f"benchmark: {title}", unit="round") as progress:
        found = measure(contenders, rounds=rounds, limit=plan.limit, clock=machine, done=progress.update)
    return record.case_record(title, contenders, found, limit=plan.limit, work=counted, peaks=peaks, **facts)


def _write(
    experiment: Experiment,
    bits: str,
    machine: Machine,
    part: str,
    cases: list[dict[str, Any]],
    peaks: work.Peaks,
    skipped: dict[str, str],
) -> None:
    config, plan = experiment.config(), experiment.benchmark
    identity = {name: config[name] for name in ("benchmark", "quant", "bits", "backend", "model", "sampler")}
    if plan.call is None:  # as before there was one: the same measurement keeps its name
        identity["benchmark"] = {name: value for name, value in config["benchmark"].items() if name != "call"}
    identity |= {"part": part, "machine": machine.describe()}
    if part == SAMPLER:
        identity["weights"] = experiment.model.weights_sha256
    own = experiment.model.makes_blocks  # else the block is STDiT's, whatever the model
    xl = not own and all(getattr(plan, name) == value for name, value in XL.items())
    if part == SAMPLER:
        xl = experiment.cfg.model.name == paper_tables.MODEL
    content = {
        "part": part,
        "signature": signature_of(identity),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": experiment.cfg.model.name,
        "own_blocks": own,
        "bits": bits,
        "weights": identity.get("weights"),
        "machine": identity["machine"],
        "limit": plan.limit,
        "peaks": peaks._asdict(),
        "peers": peers.versions(),
        "skipped": skipped,
        "cases": cases,
        "targets": targets.verdicts(part, machine.device.type, cases) if xl and bits == "w8a8" else [],
    }
    path = Path(experiment.cfg.paths.runs) / execution.FOLDER / f"{part}_{content['signature']}.json"
    write_json(path, content)
    print(f"\n{execution.report([content])}")
    log.info("benchmark: written to %s", path)


def _machine(experiment: Experiment) -> Machine:
    trainer = experiment.trainer()
    if trainer.world_size > 1:
        raise UserError(f"trainer.devices={experiment.cfg.trainer.devices} cannot be benchmarked; 1 is allowed")
    if trainer.precision not in DTYPES:
        raise UserError(f"trainer.precision={trainer.precision} cannot be benchmarked; allowed: {', '.join(DTYPES)}")
    return Machine(trainer.strategy.root_device, DTYPES[trainer.precision])


def _runs(experiment: Experiment, plan: Plan, machine: Machine) -> Runs:
    """The experiments of the methods, by their names in the results. Those in integers run on `backend=` if it is of
    integers, else on the device's own.
    """
    if not plan.integer and not plan.simulated:
        if not experiment.method.quantizes:
            raise UserError(
                f"quant={experiment.cfg.quant.name} cannot be benchmarked; a method that quantizes is allowed"
            )
        return [(experiment.cfg.quant.name, experiment)]
    options: dict[str, str] = {}
    if plan.integer and experiment.backend.simulated:
        options["backend"] = INTEGER_BACKENDS[machine.device.type]
        if not (CONF / "backend" / f"{options['backend']}.yaml").is_file():
            raise UserError(
                f"benchmark.integer={list(plan.integer)} needs backend={options['backend']}, not known here"
            )
    integer = [(name, experiment.variant(quant=name, **options)) for name in plan.integer]
    simulated = [
        (f"{name}, simulated", experiment.variant(quant=name, backend="fake_quant")) for name in plan.simulated
    ]
    return integer + simulated


def _placed(denoiser: nn.Module, machine: Machine) -> nn.Module:
    """Methods start from the original, so another dtype or device gets a copy."""
    if machine.device.type == "cpu" and machine.dtype == torch.float32:
        return denoiser
    return copy.deepcopy(denoiser).to(machine.dtype).to(machine.device)
