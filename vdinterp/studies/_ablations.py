"""The five ablations: what does each part of a video diffusion transformer do for the video?

Every condition continues the same clips from the same context frames and the same noise. A part is taken away, and the
generated frames are compared with the true ones and with those of the intact model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vdinterp.interventions import Ablate, Freeze, Intervention, MaskAttention, SetCondition
from vdinterp.models import HookedVideoDiT
from vdinterp.site import Site
from vdinterp.studies.ablation_result import AblationResult
from vdinterp.studies.bench import Bench
from vdinterp.studies.conditions import INTACT, INTACT_DENOISE, Condition
from vdinterp.studies.registry import study
from vdinterp.studies.result import build
from vdinterp.studies.trials import Moment
from vdinterp.vae import IdentityVAE
from vdinterp.words.wording import plural

MODES = ("zero", "mean", "resample", "frozen")
MEAN_OVER = "the reference clips, their frames and positions, separately at every step (or noise level)"


@study("ablations")
def ablations(bench: Bench, modes: Sequence[str] = ("zero", "mean"), strips: bool = True) -> AblationResult:
    """Leave out the transformer, its steps, its AdaLN, its attention and its MLPs, one at a time and in parts.

    `modes`: what layers and heads are replaced with: "zero", "mean" (over the reference clips), "resample" (another
    clip's activation), "frozen" (this clip's at the noisiest step). `strips`: keep film strips.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"unknown mode {', '.join(map(repr, unknown))}; choose from {', '.join(MODES)}")
    modes = tuple(dict.fromkeys(modes))
    if "resample" in modes and len(bench.reference) < 2:
        raise ValueError("mode 'resample' takes another clip's activation: the reference needs at least two clips")
    conditions = [INTACT, INTACT_DENOISE]
    for part in (no_transformer, few_steps, no_adaln, no_attention, no_mlp):
        conditions += part(bench, modes)
    measurements = bench.measure(conditions, desc=f"ablations of {bench.pipe.model.cfg.model_name}")
    bench.about |= {"modes": list(modes), "means over": MEAN_OVER}
    title = f"Ablations of {bench.pipe.model.cfg.model_name}"
    result: AblationResult = build(AblationResult, bench, measurements, title, strips=strips)
    return result


# 1. No transformer


def no_transformer(bench: Bench, modes: Sequence[str]) -> list[Condition]:
    """What comes out without any model: the VAE's round trip of the truth (the best that pixels can be; not for a model
    of pixels), the noise itself, and a picture that stands still (the baseline that a video model has to beat)."""
    condition = partial(Condition, ablation="no transformer", protocol="given")
    has_codec = bench.pipe.vae is not None and not isinstance(bench.pipe.vae, IdentityVAE)
    return [
        *([condition(variant="VAE round trip", latents=round_trip)] if has_codec else []),
        condition(variant="decoded noise", latents=pure_noise),
        condition(variant="copy last frame", latents=copy_last),
    ]


def round_trip(bench: Bench, clips: slice) -> torch.Tensor:
    return bench.truth[clips]


def pure_noise(bench: Bench, clips: slice) -> torch.Tensor:
    return bench.noise[clips]


def copy_last(bench: Bench, clips: slice) -> torch.Tensor:
    truth = bench.truth[clips]
    return truth[:, bench.n_context - 1 : bench.n_context].expand_as(truth)


# 2. One step


def few_steps(bench: Bench, modes: Sequence[str]) -> list[Condition]:
    """1, 2, 4, ... denoising steps up to the full number, deterministic (DDIM), from the same noise."""
    ladder = [2**power for power in range(bench.steps.bit_length()) if 2**power < bench.steps]
    return [
        Condition(ablation="one step", variant=plural(steps, "step"), site="sampler", steps=steps)
        for steps in (*ladder, bench.steps)
    ]


# 3. No AdaLN


def no_adaln(bench: Bench, modes: Sequence[str]) -> list[Condition]:
    """What the modulation's shift, scale and gate carry: the noise level of each frame, and the action."""
    model = bench.pipe.model
    mod = modulation(model)
    if not mod:
        return []
    shift_scale = [site for site in mod if site.what != "mod.gate"]
    gates = [site for site in mod if site.what == "mod.gate"]
    condition = partial(Condition, ablation="no AdaLN", site="modulation")
    conditions = [
        condition(variant="identity", interventions=identity(shift_scale, gates)),
        condition(variant="constant", mode="mean", interventions=partial(constant, sites=mod)),
        condition(variant="same at every step", mode="mean", interventions=partial(steady, sites=mod)),
        condition(variant="frozen at the first step", mode="frozen", interventions=partial(frozen, sites=mod, at=0.0)),
        condition(variant="frozen half-way", mode="frozen", interventions=partial(frozen, sites=mod, at=0.5)),
    ]
    if gates:
        conditions += [
            condition(variant="gates only", mode="mean", interventions=partial(constant, sites=shift_scale)),
            condition(variant="shift and scale only", mode="mean", interventions=partial(constant, sites=gates)),
        ]
    for part in ("attn", "cross_attn", "mlp", "final"):
        sites = [site for site in mod if site.sublayer == part]
        if sites:
            conditions.append(
                condition(
                    variant=f"constant in {part}", mode="mean", site=part, interventions=partial(constant, sites=sites)
                )
            )
    if bench.has_cond:
        no_action = SetCondition(None)
        conditions.append(condition(variant="no action", site="condition", interventions=(no_action,)))
        if len(bench.clips) > 1:
            conditions.append(condition(variant="another clip's action", site="condition", interventions=swapped))
    if bench.stimulus.cond.text is not None:
        no_text = SetCondition(text=None)
        conditions.append(condition(variant="no text", site="condition", interventions=(no_text,)))
    return conditions


def modulation(model: HookedVideoDiT) -> list[Site]:
    """AdaLN's shift, scale and gate everywhere."""
    return [site for site in map(Site.parse, model.hook_names) if site.what in ("mod.shift", "mod.scale", "mod.gate")]


def identity(shift_scale: Sequence[str], gates: Sequence[str]) -> list[Intervention]:
    """Shift 0, scale 0, gate 1: a plain LayerNorm and an ungated residual."""
    held: list[Intervention] = [Freeze(list(shift_scale), 0.0)] if shift_scale else []
    return held + ([Freeze(list(gates), 1.0)] if gates else [])


def constant(moment: Moment, sites: Sequence[str]) -> list[Intervention]:
    """One vector for each site, whatever noise level, frame and action: the mean over the reference clips, all their
    frames (context and target) and all steps. Takes away what tells a clean frame from a noisy one."""
    bench = moment.bench
    steps = bench.references.means(modulation(bench.pipe.model))
    mean = {name: torch.stack([step[name] for step in steps]).mean(0) for name in sites}
    return [Ablate(list(sites), mode="mean", reference=mean)]


def steady(moment: Moment, sites: Sequence[str]) -> list[Intervention]:
    """Each clip's and frame's own modulation, averaged over the steps: context stays clean, the action stays; only how
    far the denoising has come is taken away."""
    steps = moment.bench.references.own(sites, None, moment.clips)
    mean = {name: torch.stack([step[name] for step in steps]).mean(0) for name in sites}
    return [Ablate(list(sites), mode="frozen", reference=mean)]


def frozen(moment: Moment, sites: Sequence[str], at: float) -> list[Intervention]:
    """Each clip's and frame's own modulation of one step, at every step. `at`: 0 the first (pure noise), towards 1 the
    last."""
    steps = moment.bench.references.own(sites, None, moment.clips)
    return [Ablate(list(sites), mode="frozen", reference=steps[int(at * len(steps))])]


def swapped(moment: Moment) -> list[Intervention]:
    """The actions of the clip before; to the model's full length, to which a sampler pads, with the last one."""
    bench = moment.bench
    action = bench.stimulus.cond.actions
    assert action is not None
    missing = bench.pipe.model.cfg.n_frames - action.shape[1]
    action = torch.cat([action, action[:, -1:].expand(-1, missing, -1)], dim=1)
    return [SetCondition(action.roll(1, dims=0)[moment.clips])]


# 4. No attention


def no_attention(bench: Bench, modes: Sequence[str]) -> list[Condition]:
    """All attention off; attention that sees less; and, in single passes, every layer and every head by itself."""
    model = bench.pipe.model
    layers, frames = range(model.cfg.n_layers), range(model.cfg.n_frames)
    outputs = [Site(layer, "attn", "out") for layer in layers]
    context, target = tuple(frames[: bench.n_context]), tuple(frames[bench.n_context :])
    condition = partial(Condition, ablation="no attention", site="attention")
    conditions = [
        condition(variant="all off", mode="zero", interventions=(Ablate(outputs, mode="zero"),)),
        condition(variant="all at their mean", mode="mean", interventions=partial(removed, sites=outputs, mode="mean")),
        condition(variant="own frame only", interventions=(MaskAttention(allow="own_frame"),)),
        condition(variant="same position only", interventions=(MaskAttention(allow="same_position"),)),
        condition(variant="context to target cut", interventions=(MaskAttention(cut=(target, context)),)),
    ]
    for mode in modes:
        conditions += [one_layer(model, "no attention", layer, "attn", mode) for layer in layers]
    for mode in modes:
        for layer in layers:
            for head in range(model.cfg.n_heads):
                site = Site(layer, "attn", "z")
                conditions.append(
                    Condition(
                        ablation="no attention",
                        variant=f"layer {layer} head {head}",
                        mode=mode,
                        site="head",
                        layer=layer,
                        head=head,
                        protocol="denoise",
                        interventions=partial(removed, sites=[site], mode=mode, heads=(head,)),
                    )
                )
    return conditions


# 5. No MLP


def no_mlp(bench: Bench, modes: Sequence[str]) -> list[Condition]:
    """All MLPs off, or at their mean; and every one by itself."""
    model = bench.pipe.model
    layers = [layer for layer, block in enumerate(model.cfg.blocks) if block.mlp is not None]
    if not layers:
        return []
    outputs = [Site(layer, "mlp", "out") for layer in layers]
    condition = partial(Condition, ablation="no MLP", site="MLP")
    conditions = [
        condition(variant="all off", mode="zero", interventions=(Ablate(outputs, mode="zero"),)),
        condition(variant="all at their mean", mode="mean", interventions=partial(removed, sites=outputs, mode="mean")),
    ]
    return conditions + [one_layer(model, "no MLP", layer, "mlp", mode) for mode in modes for layer in layers]


# What is put in the place of what is taken away


def one_layer(model: HookedVideoDiT, ablation: str, layer: int, sublayer: str, mode: str) -> Condition:
    """One sublayer's output replaced, judged in single passes."""
    return Condition(
        ablation=ablation,
        variant=f"layer {layer}",
        mode=mode,
        site="layer",
        layer=layer,
        protocol="denoise",
        interventions=partial(removed, sites=[Site(layer, sublayer, "out")], mode=mode),
    )


def removed(moment: Moment, sites: Sequence[str], mode: str, heads: Sequence[int] | None = None) -> list[Intervention]:
    """`Ablate` in any mode, with the reference that belongs to this moment: the same step, or the same noise level."""
    sites = list(sites)
    if mode == "zero":
        return [Ablate(sites, mode="zero", heads=heads)]
    references, level = moment.bench.references, moment.level
    if mode == "mean":
        found = references.means(outputs(moment.bench.pipe.model), level)
    elif mode == "resample":  # recorded on other clips already, so there is nothing left to exchange
        found, mode = references.other_clips(outputs(moment.bench.pipe.model), level, moment.clips), "frozen"
    else:  # frozen at the noisiest
        noisiest = None if level is None else max(moment.bench.levels)
        found = references.own(outputs(moment.bench.pipe.model), noisiest, moment.clips)[:1]
    if len(found) == 1:
        return [Ablate(sites, mode=mode, reference=found[0], heads=heads)]  # type: ignore[arg-type]
    return [
        Ablate(sites, mode=mode, reference=step, heads=heads, steps=(index,))  # type: ignore[arg-type]
        for index, step in enumerate(found)
    ]


def outputs(model: HookedVideoDiT) -> list[Site]:
    """What sublayers and heads put out: recorded together, so that one run serves all ablations."""
    wanted = (("attn", "out"), ("mlp", "out"), ("attn", "z"))
    return [site for site in map(Site.parse, model.hook_names) if (site.sublayer, site.what) in wanted]
