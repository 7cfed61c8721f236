"""Any video pipeline of diffusers as a video model: its own scheduler, guidance, encoders and decoder do the work."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import StepObserver, step_observers
from vdq.diffusion.samplers import Noise, RespacedSampler, Sampler
from vdq.errors import UserError
from vdq.models.base import RANDOM, Callback, VideoModel
from vdq.models.driver import clock_follows
from vdq.models.one_block import Call, OneBlock
from vdq.models.pipelines.call import PipelineCall
from vdq.models.pipelines.driven import ENCODERS, Driven, driven_class, watching
from vdq.models.pipelines.families import drawn_text, facts_of
from vdq.models.pipelines.offload import KINDS, offloaded
from vdq.models.pipelines.one_block import block_of
from vdq.models.pipelines.prompts import Encoded, EncodedStore, joined
from vdq.models.pipelines.published import DECODER, DENOISERS, SCHEDULER, Published
from vdq.models.pipelines.refused import FRAMES, refusal
from vdq.quant.layers import linear_modules
from vdq.sources import Source

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SMALL_SIDE, SMALL_FRAMES = 256, 17  # pixels and frames of a video small enough for a CPU
TOKENS = 120  # of a prompt, where a call does not say it
PASSED_OVER = 50  # steps of a schedule that nobody runs; some pipelines cannot make very short ones
GUIDED_BY = ["pred_cond", "pred_uncond"]  # what guiders mix that call the denoiser twice, in order
GUIDED = 2.0  # any scale above 1: the negative prompt is encoded as well


class Called(Exception):
    """Leaves a sampling at the first call of its denoiser."""


class DiffusersModel(VideoModel):
    """A video model in the layout of diffusers' pipelines.

    pretrained: a local folder, a repository on the Hub, or "random". revision: of the repository. structure: see
    Published. call: the pipeline's own arguments of a call, such as height, width and num_frames. scheduler: fields
    that replace those of its scheduler, and `_class_name` for another one. dtype: of transformer and text encoders,
    fp32, fp16 or bf16; decode_dtype: of the decoder; tiled: it works on tiles, which saves memory. offload: None,
    "model" or "group" (vdq.models.pipelines.offload). quantizable: patterns of the layers that may be quantized, None:
    the linears of the blocks. fps: of the videos. gigabytes: of the download, for messages. net: takes the place of the
    denoisers, of which `weights_sha256` does not know. Weights are read when they are needed. Raises UserError.
    """

    unsigned = ("pretrained", "revision", "cache", "gigabytes", "offload")
    batch_size = 1
    latent_shape = None  # the pipeline draws its noise in the shape it wants
    owns_precision = True

    def __init__(
        self,
        *,
        pretrained: str,
        revision: str | None = None,
        structure: dict[str, Any] | None = None,
        call: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        dtype: str = "bf16",
        decode_dtype: str = "fp32",
        tiled: bool = False,
        offload: str | None = None,
        quantizable: Sequence[str] | None = None,
        fps: int = 16,
        gigabytes: float = 0,
        cache: str = "runs/cache",
        net: nn.Module | None = None,
    ) -> None:
        for name, value in {"dtype": dtype, "decode_dtype": decode_dtype}.items():
            if value not in DTYPES:
                raise UserError(f"model.{name}={value} must be one of {', '.join(DTYPES)}")
        if offload not in (None, *KINDS):
            raise UserError(f"model.offload={offload} must be null or one of {', '.join(KINDS)}")
        if fps < 1:
            raise UserError(f"model.fps={fps} must be at least 1")
        if gigabytes < 0:
            raise UserError(f"model.gigabytes={gigabytes} must be at least 0")
        if quantizable is not None and not quantizable:
            raise UserError("model.quantizable=[] must have at least one pattern; null is all linears of the blocks")
        self.fps, self.dtype, self.decode_dtype = fps, DTYPES[dtype], DTYPES[decode_dtype]
        self.tiled, self.offload, self.places_itself = tiled, offload, offload is not None
        self.cache, self.call, self.changed_scheduler = Path(cache), dict(call or {}), dict(scheduler or {})
        source = Source("model.pretrained", pretrained, revision, gigabytes)
        self._published = Published(source, structure, self.cache)
        self._net, self._patterns = net, None if quantizable is None else tuple(quantizable)
        self._encoded: dict[str, list[Any]] = {}

    # What it is -------------------------------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        return self._published.random

    @property
    def takes_images(self) -> bool:
        return self._how.takes_images

    @cached_property
    def denoisers(self) -> tuple[str, ...]:
        return tuple(name for name in DENOISERS if name in self._published.components)

    @cached_property
    def structure(self) -> nn.Module:
        return self._together({name: self._published.empty(name) for name in self.denoisers})

    @cached_property
    def denoiser(self) -> nn.Module:
        if self._net is not None:
            return self._net
        return self._together({name: self._published.load(name, self.dtype) for name in self.denoisers})

    @cached_property
    def family(self):
        facts = facts_of(next(iter(self._experts(self.structure).values())))
        if "guider" in self._published.components and self._published.kind("guider")._input_predictions != GUIDED_BY:
            return replace(facts, calls_a_step=None)  # such as one that skips layers in a third call
        return facts

    def quantizable(self, fqn: str) -> bool:
        if self._patterns is None:
            return super().quantizable(fqn)
        return any(fnmatchcase(self._within(fqn), pattern) for pattern in self._patterns)

    @property
    def companions(self) -> dict[str, str]:
        return {"pipeline": self._published.identity}

    @cached_property
    def weights_sha256(self) -> str:
        return hashlib.sha256(self._published.identity.encode()).hexdigest()

    # A smaller one ----------------------------------------------------------------------------------------------------

    makes_blocks = True

    def shallow(self, call: dict[str, Any] | None = None) -> DiffusersModel:
        small = {"height": SMALL_SIDE, "width": SMALL_SIDE}
        for name in FRAMES:
            small[name] = min(SMALL_FRAMES, self.call.get(name) or SMALL_FRAMES)
        small = {name: value for name, value in small.items() if name in self._how.signature}
        return DiffusersModel(
            pretrained=RANDOM,
            structure=self._published.shallow(),
            call=self.call | small | dict(call or {}),
            scheduler=self.changed_scheduler,
            dtype="fp32",
            quantizable=self._patterns,
            cache=str(self.cache),
        )

    def one_block(self, sampler: Sampler) -> OneBlock:
        expert = self.denoisers[0]
        net, call = self._published.load(expert, torch.float32), self.first_call(sampler)
        prefix = f"{expert}." if len(self.denoisers) > 1 else ""
        return block_of(
            net,
            call,
            name=self.family.name,
            timesteps=self.timesteps(sampler),
            quantizable=lambda fqn: self.quantizable(prefix + fqn),
            facts={"call": self.call},
        )

    # What may be asked of it ------------------------------------------------------------------------------------------

    def check(self, sampler: Sampler) -> None:
        if isinstance(sampler, RespacedSampler):
            raise UserError(
                f"sampler={type(sampler).__name__} is Open-Sora's; this model has its own scheduler: sampler=own_50"
            )
        self._check_pipeline()
        self._how.check()
        self._check_patterns()
        self._check_inputs(sampler)

    def _check_pipeline(self) -> None:
        kind, field = self._published.pipeline_class, self._published.field
        if reason := refusal(kind, self._published.components):
            raise UserError(f"{field} is a {kind.__name__}, {reason}")
        if self.takes_images and self._published.arguments.get("expand_timesteps"):
            raise UserError(f"{field} gives the first frame a timestep of its own: no step is one")

    def _check_patterns(self) -> None:
        names = [self._within(fqn) for fqn, _ in linear_modules(self.structure)]
        for pattern in self._patterns or ():
            if not any(fnmatchcase(fqn, pattern) for fqn in names):
                raise UserError(f"model.quantizable: {pattern!r} matches no linear of the model, such as {names[0]}")

    def _check_inputs(self, sampler: Sampler) -> None:
        """By the pipeline's own checks; what it only warns of, such as a size that it changes, is refused as well."""
        pipeline = self._pipeline
        with _warnings_of(self._published.pipeline_class) as warnings:
            try:
                pipeline.checked(
                    **self._inputs([""]),
                    num_inference_steps=sampler.steps,
                    **self._how.guidance(pipeline, sampler.guidance_scale),
                    **self.call,
                )
            except (ValueError, TypeError) as error:
                warnings.append(str(error))
        if warnings:
            raise UserError(f"model.call={self.call}: {' '.join(warnings)}")

    @cached_property
    def _how(self) -> PipelineCall:
        return PipelineCall(self._published.pipeline_class, self.call)

    # Time -------------------------------------------------------------------------------------------------------------

    def timesteps(self, sampler: Sampler) -> Tensor:
        """Of the scheduler after a call without a step: pipelines hand it sigmas and shifts of their own."""
        cpu = torch.device("cpu")
        encoding, encoder = joined([self._any_encoding()], cpu), self._image_encoder(cpu)
        with self._set_up(self._pipeline, cpu, encoding, pass_over=True, **encoder) as pipeline:
            self._call(pipeline, [""], sampler, [torch.Generator()])
            return pipeline.scheduler.timesteps.float().cpu()

    def windows(self, sampler: Sampler) -> dict[str, range]:
        """As diffusers' Wan: the first expert works where t >= boundary_ratio * num_train_timesteps."""
        if len(self.denoisers) == 1:
            return super().windows(sampler)
        scheduler = self._published.scheduler(self.changed_scheduler)
        scheduler.set_timesteps(sampler.steps)
        boundary = self._published.arguments["boundary_ratio"] * scheduler.config.num_train_timesteps
        first = int((scheduler.timesteps >= boundary).sum())
        return dict(zip(self.denoisers, (range(first), range(first, sampler.steps)), strict=True))

    # Prompts ----------------------------------------------------------------------------------------------------------

    def prepare(self, prompts: list[str], device: Any) -> int:
        different = {self._encoded_prompts.key(prompt): prompt for prompt in prompts}.values()
        new = [prompt for prompt in different if self._encoding(prompt) is None]
        if not new:
            return 0
        kind, empty = driven_class(self._published.pipeline_class), not self.takes_images
        pipeline = self._with_encoders(kind, self.structure, empty=empty)
        pipeline.place = torch.device(device)
        for name in self._encoder_names if empty else [*self._encoder_names, DECODER]:
            if isinstance(part := getattr(pipeline, name), nn.Module):
                part.to(device)
        for prompt in tqdm(new, desc="encoding prompts", unit="prompt", disable=len(new) < 2):
            encoding = pipeline.encoded(**self._inputs([prompt]), **self._how.guidance(pipeline, GUIDED), **self.call)
            self._encoded_prompts.write(prompt, encoding)
        return len(new)

    def encode(self, prompts: list[str]) -> Encoded:
        encodings = [self._encoding(prompt) for prompt in prompts]
        if None in encodings:
            raise RuntimeError("prompts must be prepared before they are encoded")
        return Encoded(list(prompts), encodings)

    def _encoding(self, prompt: str) -> list[Any] | None:
        key = self._encoded_prompts.key(prompt)
        if key not in self._encoded:
            found = self._drawn(prompt) if self.random else self._encoded_prompts.read(prompt)
            if found is None:
                return None
            self._encoded[key] = found
        return self._encoded[key]

    def _any_encoding(self) -> list[Any]:
        """For calls whose numbers do not depend on the prompt."""
        if self._encoded:
            return next(iter(self._encoded.values()))
        if getattr(self.family, "text", None) is None:
            raise UserError("the steps of this pipeline are known after its prompts are encoded")
        return self._drawn("")

    def _drawn(self, prompt: str) -> list[Any]:
        """Random numbers in place of what the text encoders make of a prompt."""
        if getattr(self.family, "text", None) is None:
            raise UserError(
                f"model.pretrained={RANDOM} is not possible for {self.family.name}: what it makes of text is not known"
            )
        config = self._published.full_config(self.denoisers[0])
        length = self._how.value("max_sequence_length", TOKENS)
        return drawn_text(self.family, config, length, prompt, self.dtype)

    @cached_property
    def _encoded_prompts(self) -> EncodedStore:
        model = [self._published.identity, self._published.pipeline_class.__name__, self.call, str(self.dtype)]
        return EncodedStore(self.cache / "encoded", model)

    # Videos -----------------------------------------------------------------------------------------------------------

    def sample(
        self,
        denoiser: nn.Module,
        conditions: Encoded,
        noise: PromptNoise,
        clock: StepClock,
        sampler: Sampler,
        callback: Callback | None = None,
        observers: Sequence[StepObserver] = (),
    ) -> Tensor:
        """As VideoModel says, but the state has the dtype that the pipeline gives it, and the latents are what it calls
        so: [n, c, T, H, W], or tokens [n, S, c] where it packs them.
        """
        if clock.num_steps != sampler.steps:
            raise UserError(f"clock.num_steps={clock.num_steps} must equal the sampler's steps={sampler.steps}")
        watchers = [*step_observers(denoiser), *observers]

        def seen(estimate: Tensor, latents: Tensor) -> None:
            for observer in watchers:
                observer.observe(clock.step, estimate)
            if callback is not None:
                callback(clock.step, latents)

        pipeline, experts = self._pipeline, self._experts(denoiser)
        place = clock.index.device if self.places_itself else next(iter(denoiser.parameters())).device
        with ExitStack() as stack:
            if self.offload is not None:
                stack.enter_context(offloaded(self.offload, list(experts.values()), place))
            stack.enter_context(
                self._set_up(pipeline, place, conditions.batch(place), **experts, **self._image_encoder(place))
            )
            for expert in experts.values():
                stack.enter_context(clock_follows(clock, expert, pipeline.scheduler, self.family.calls_a_step))
            stack.enter_context(watching(pipeline.scheduler, list(experts.values()), seen))
            return self._latents(pipeline, conditions.prompts, sampler, noise.generators()).float()

    def _latents(
        self, pipeline: Driven, prompts: list[str], sampler: Sampler, generators: list[torch.Generator]
    ) -> Tensor:
        """In the form in which the pipeline prepares them, so that it can decode them: some cut off at the end what
        they have beside the video, or unpack tokens.
        """
        last: dict[str, Tensor] = {}

        def keep(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            last.update(tensors)
            return {}

        named = {"callback_on_step_end": keep} if "callback_on_step_end" in self._how.signature else {}
        made = self._call(pipeline, prompts, sampler, generators, **named)
        return last["latents"] if made.shape != pipeline.prepared and last else made

    def plain_sampling(self, denoiser: nn.Module, conditions: Encoded, sampler: Sampler) -> Callable[[Noise], Tensor]:
        """noise -> what `sample` computes, by the pipeline's own call with nothing of ours around or in it. Encoded
        prompts take the place of its text encoders.
        """
        pipeline = self._without_encoders(self._published.pipeline_class)
        place = next(iter(denoiser.parameters())).device
        pipeline.register_modules(**self._experts(denoiser), **self._image_encoder(place))
        encodings = cycle(conditions.batch(place))
        for name in ENCODERS:
            if hasattr(pipeline, name):
                setattr(pipeline, name, lambda *args, **named: next(encodings))
        return lambda noise: self._call(pipeline, conditions.prompts, sampler, noise.generators()).float()

    def first_call(self, sampler: Sampler) -> Call:
        cpu, (first, *_) = torch.device("cpu"), self._experts(self.structure).values()
        seen: list[Call] = []

        def leave(module: nn.Module, args: tuple, named: dict[str, Any]) -> None:
            seen.append(Call(args, dict(named)))
            raise Called

        hook = first.register_forward_pre_hook(leave, with_kwargs=True)
        encoding = joined([self._any_encoding()], cpu)
        try:
            with self._set_up(self._pipeline, cpu, encoding, **self._image_encoder(cpu)) as pipeline:
                self._call(pipeline, [""], sampler, [torch.Generator().manual_seed(0)])
        except Called:
            return seen[0]
        finally:
            hook.remove()
        raise RuntimeError(f"{self._published.pipeline_class.__name__} has made a video without its denoiser")

    def decode(self, latents: Tensor) -> Tensor:
        """latents as `sample` returns them -> uint8 [n, T, H, W, 3] on the CPU, one video at a time, by the pipeline's
        own code, whose steps are passed over.
        """
        decoder, sampler = self._decoder.to(latents.device), Sampler(steps=PASSED_OVER)
        videos = []
        for video in latents.split(1):
            encoding = joined([self._any_encoding()], latents.device)
            set_up = self._set_up(self._pipeline, latents.device, encoding, latents=video, pass_over=True, vae=decoder)
            with set_up as pipeline:
                frames = self._call(pipeline, [""], sampler, [torch.Generator().manual_seed(0)], output_type="np")
            videos.append(torch.from_numpy((np.asarray(frames) * 255).round().astype(np.uint8)))
        decoder.to("cpu")
        return torch.cat(videos)

    # The pipeline -----------------------------------------------------------------------------------------------------

    def pipeline(self) -> Any:
        """The plain pipeline with this model's tensors and its encoders: to be called, or saved."""
        return self._with_encoders(self._published.pipeline_class, self.denoiser, empty=False)

    def _with_encoders(self, kind: type, denoiser: nn.Module, *, empty: bool) -> Any:
        """A pipeline of that class with these denoisers; with `empty`, its decoder has no weights."""
        parts = self._experts(denoiser) | {SCHEDULER: self._published.scheduler(self.changed_scheduler)}
        parts[DECODER] = self._published.empty(DECODER) if empty else self._decoder
        folder = self._published.folder([f"{name}/*" for name in self._encoder_names])
        try:
            found = kind.from_pretrained(folder, torch_dtype=self.dtype, **parts)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self._published.field}: the text encoder cannot be read ({reason})") from error
        found.set_progress_bar_config(disable=True)
        return found

    @cached_property
    def _pipeline(self) -> Driven:
        return self._without_encoders(driven_class(self._published.pipeline_class))

    def _without_encoders(self, kind: type) -> Any:
        """A pipeline of that class; its denoisers and its decoder have no weights."""
        parts = self._experts(self.structure) | {
            DECODER: self._published.empty(DECODER),
            SCHEDULER: self._published.scheduler(self.changed_scheduler),
        }
        parts |= {name: self._published.plain(name) for name in self._encoder_names}
        missing = set(inspect.signature(kind.__init__).parameters) - {"self"} - set(self._published.arguments)
        try:
            found = kind(**dict.fromkeys(missing) | parts | self._published.arguments)
        except ImportError as error:  # of a part that it makes by itself, such as Cosmos' guardrail
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self._published.field}: {kind.__name__} cannot be made ({reason})") from error
        found.set_progress_bar_config(disable=True)
        return found

    @contextmanager
    def _set_up(
        self,
        pipeline: Driven,
        place: torch.device,
        encoding: list[Any],
        *,
        latents: Tensor | None = None,
        pass_over: bool = False,
        **parts: nn.Module,
    ) -> Iterator[Driven]:
        """Inside, the pipeline works on a device with these parts and encodings, and with a new scheduler, of the
        configuration that the pipeline gave its own.
        """
        before = {name: getattr(pipeline, name) for name in parts}
        pipeline.place = place
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        pipeline.register_modules(**parts, scheduler=scheduler)
        try:
            with pipeline.giving(encoding, latents=latents, pass_over=pass_over):
                yield pipeline
        finally:
            pipeline.register_modules(**before)

    def _call(
        self,
        pipeline: Driven,
        prompts: list[str],
        sampler: Sampler,
        generators: list[torch.Generator],
        output_type: str = "latent",
        **named: Any,
    ) -> Any:
        return pipeline(
            **self._inputs(prompts),
            num_inference_steps=sampler.steps,
            generator=generators[0] if self._takes_one else generators,
            output_type=output_type,
            return_dict=False,
            **self._how.guidance(pipeline, sampler.guidance_scale),
            **self.call,
            **named,
        )[0]

    @cached_property
    def _decoder(self) -> nn.Module:
        decoder = self._published.load(DECODER, self.decode_dtype)
        if self.tiled:
            decoder.enable_tiling()
        return decoder

    def _image_encoder(self, place: torch.device) -> dict[str, nn.Module]:
        """The autoencoder where images must be encoded, or the videos that a call may do without."""
        return {DECODER: self._decoder.to(place)} if self._how.encodes_pixels else {}

    @property
    def _encoder_names(self) -> list[str]:
        return [n for n in self._published.components if n not in (*DENOISERS, DECODER, SCHEDULER)]

    @property
    def _takes_one(self) -> bool:
        return getattr(self.family, "one_prompt", False)

    def _inputs(self, prompts: list[str]) -> dict[str, Any]:
        return self._how.inputs(prompts, one_prompt=self._takes_one)

    def _experts(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return {self.denoisers[0]: denoiser} if len(self.denoisers) == 1 else dict(denoiser.items())

    def _together(self, experts: dict[str, nn.Module]) -> nn.Module:
        return nn.ModuleDict(experts) if len(experts) > 1 else next(iter(experts.values()))

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which make what cannot be sent: the class of the driven pipeline has no address."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_pipeline", "_how")}

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffusersModel:
        """Itself: its parts are never changed in place, and too large for copies that nobody asked for."""
        return self


@contextmanager
def _warnings_of(kind: type) -> Iterator[list[str]]:
    """The warnings that the module of a class logs meanwhile, in place of the console."""
    logger, found = logging.getLogger(kind.__module__), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
