"""What an ablation study says in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vdinterp.studies import wording
from vdinterp.words.wording import caution, fails, listing, number, plural

if TYPE_CHECKING:
    from vdinterp.studies.ablation_result import AblationResult

PARTS = {"no AdaLN": "its AdaLN", "no attention": "its attention", "no MLP": "its MLPs"}
BLURRED = 0.95  # of the intact model's sharpness, and of the truth's: below, a sample is called blurred
METHOD = {
    "no transformer": "Without any model: {round_trip}`decoded noise` decodes the noise that sampling starts from, "
    "`copy last frame` repeats the last context frame: a still picture.",
    "one step": "The same model and noise, with fewer denoising steps (deterministic DDIM over evenly spaced levels).",
    "no AdaLN": "Every sublayer's input is scaled and shifted, and its output gated, by vectors made from the frame's "
    "noise level (and action).\n"
    "- `identity`: shift 0, scale 0, gate 1.\n"
    "- `constant`: one vector per site, the mean over reference clips, frames and steps; `constant in attn`, `mlp`, "
    "`final`: in those sublayers only.\n"
    "- `same at every step`: each frame's own modulation, averaged over the steps: only the progress of the denoising "
    "is taken away. `frozen at the first step`, `frozen half-way`: held at that step's noise level.\n"
    "- `gates only`: shift and scale constant, gates vary; `shift and scale only`: the reverse.\n"
    "- `no action`: the action's embedding is left out; `another clip's action`: actions of the next clip; "
    "`no text`: zeros in place of the text.",
    "no attention": "`all off`: the output of every attention is 0; `all at their mean`: its mean over the reference "
    "clips. `own frame only` and `same position only` forbid attention to other frames, or to other places. `context "
    "to target cut`: target frames do not see the context (context frames still see everything).",
    "no MLP": "The output of every MLP, or of a single one, is replaced by 0 or by its mean over the reference clips.",
}
ROUND_TRIP = (
    "`VAE round trip` encodes and decodes the true video (in latents its error is 0 by definition; its PSNR is the "
    "best that any latents can reach), "
)


def finding(result: AblationResult) -> str:
    """What came out, in two or three sentences: which part is needed most, and what fewer steps do."""
    base, still, meta = wording.intact(result), wording.copy(result), result.meta
    worst = {name: row for name in PARTS if (row := costliest(result, name)) is not None}
    ranked = sorted(worst, key=lambda name: -float(worst[name]["error"]))
    frames = f"{meta.get('context frames')} of {meta.get('frames')} frames"
    text = (
        f"`{meta.get('model')}` continues {meta.get('clips')} from {frames} with an x0 error of "
        f"{wording.scored(base)}; the mean frame scores 1, a still picture {wording.scored(still)}."
    )
    if fails(meta):
        text += " Its parts are not ranked: what their absence costs a model that fails says nothing of them."
        return f"{text} {steps_finding(result)}".strip()
    clear = [name for name in ranked if worst[name]["clear"]]
    if clear:
        first = worst[clear[0]]
        text += (
            f" Of its parts it needs **{PARTS[clear[0]]} most**: with {wording.name(first)} the error is "
            f"{number(first['error'])}, {wording.times(first['error'], base['value'])} and {_beside(first, still)}"
        )
        others = [f"{PARTS[name]} ({wording.name(worst[name])}, {number(worst[name]['error'])})" for name in clear[1:]]
        text += f"; then {listing(others)}." if others else "."
    elif ranked:
        text += " No ablation raises that error measurably."
    return f"{text} {steps_finding(result)}".strip()


def steps_finding(result: AblationResult) -> str:
    """What a single step does to error and sharpness, in one sentence; empty where it was not measured."""
    if "one step" not in result.ablations or not len(result.pick(ablation="one step", variant="1 step")):
        return ""
    one, base = result.pick(ablation="one step", variant="1 step").iloc[0], wording.intact(result)
    sharp, full = (
        float(result.pick("sharpness", **where)["value"].iloc[0]) if result.in_pixels else math.nan
        for where in ({"ablation": "one step", "variant": "1 step"}, {"ablation": "intact", "protocol": "sample"})
    )
    steps = plural(int(result.meta["steps"]), "step")
    lower = one["value"] < base["value"]
    text = (
        f"A single denoising step scores {number(one['value'])}, {'lower' if lower else 'no lower'} than all {steps}"
        + (
            f", with a sharpness of {number(sharp)} against {number(full)} (1 is as sharp as the true frames)"
            if result.in_pixels
            else ""
        )
    )
    if lower and sharp < BLURRED * min(full, 1.0):
        return f"{text}: squared error rewards a blurred average of what may come, so this is not better video."
    if lower:
        return f"{text}: squared error rewards the average of what may come over one that is made out in many steps."
    return f"{text}."


def costliest(result: AblationResult, ablation: str) -> Any:
    """The sampled variant of an ablation with the largest rise, as a row with `error` and `clear`; None if none is."""
    table = wording.rises(result, ablation=ablation, protocol="sample")
    return table.iloc[0] if len(table) else None


def _beside(row: Any, still: Any) -> str:
    return "worse than a still picture" if row["error"] > still["value"] else "still better than a still picture"


def summary(result: AblationResult) -> str:
    """The finding, and what each ablation costs at its worst; first of all whether the model works on these clips."""
    if fails(result.meta):
        return caution(result.meta) + finding(result)
    base, still = wording.intact(result), wording.copy(result)
    noise = wording.only(result.pick(variant="decoded noise"))
    lines = [
        f"- **no transformer**: copying the last context frame scores {wording.scored(still)}, decoded noise "
        f"{number(noise['value'])}."
    ]
    for ablation in result.ablations[1:]:
        worst = None if ablation == "one step" else costliest(result, ablation)  # the finding says what one step does
        if worst is None:
            continue
        if worst["clear"]:
            what = (
                f"{wording.name(worst)} costs most: x0 error {number(worst['error'])}, "
                f"{wording.times(worst['error'], base['value'])} and {_beside(worst, still)}."
            )
        elif worst["low"] != worst["low"]:
            what = f"{wording.name(worst)} costs most, x0 error {number(worst['error'])}; one clip gives no interval."
        else:
            what = "no variant raises the x0 error measurably."
        lines.append(f"- **{ablation}**: {what}")
    return caution(result.meta) + finding(result) + "\n\n" + "\n".join(line for line in lines if line)


def method(result: AblationResult) -> str:
    """How the numbers were made."""
    meta = result.meta
    target = (int(meta["frames"]) - int(meta["context frames"])) * int(str(meta["clips"]).split()[0].replace(",", ""))
    judged = ""
    if meta["judged frames"] < target:
        judged = (
            f" Only frames that follow from the context are judged ({meta['judged frames']} of {target}): what "
            "comes as a surprise in the clip cannot be generated by any model."
        )
    levels = listing([f"{level:g}" for level in meta["levels"]])
    return (
        f"**Same for all conditions**: clips, context, initial noise (seed {meta['seed']}), full-sequence schedule "
        f"of {plural(int(meta['steps']), 'DDIM step')}.{judged} Single layers and heads are judged in one forward pass "
        f"instead, all target frames noised to level {levels} (averaged), so that nothing accumulates over steps.\n\n"
        "**Scores**, per target frame, against the truth and against the intact model's output: x0 error (mean "
        "squared error of the latents over their variance around the mean frame; 0 perfect, 1 the mean frame), "
        "motion error (the same of frame differences; 1 is standing still), sharpness (gradient energy of the frame "
        "over that of the true one; 1 as sharp, less is blur, more is noise), PSNR and SSIM of pixels. `rise` is the "
        "x0 error minus the intact model's on the same clips. Intervals: 95 % bootstrap over clips.\n\n"
        "**What no single score says**: squared errors (x0 error, motion error, PSNR) are lowest for the average of "
        "all that may come, which is blurred. Fewer steps give such an average, so they can look better than many; "
        "sharpness, which sees only blur, has to be read beside them.\n\n"
        f"**Replacements**: `mean` averages over {meta.get('means over', 'the reference clips')} "
        f"({meta.get('reference', '')}); `zero` also removes what is always there, which can hurt for reasons that "
        "have nothing to do with information; `resample` takes another clip's activation, `frozen` this clip's at "
        "the noisiest step."
    )


def chapter(result: AblationResult, ablation: str) -> str:
    """What was removed, and what that does. KeyError for an ablation that is not in this result."""
    result.check(ablation)
    base, still = wording.intact(result), wording.copy(result)
    parts = [METHOD[ablation].format(round_trip=ROUND_TRIP if result.round_trip is not None else "")]
    if ablation == "no transformer":
        metric, unit = ("PSNR", " dB") if result.in_pixels else ("x0 error", "")
        noise = result.pick(metric, variant="decoded noise")["value"].iloc[0]
        own = result.pick(metric, ablation="intact", protocol="sample")["value"].iloc[0]
        best = "" if result.round_trip is None else f"the round trip alone reaches {result.round_trip:.1f} dB, "
        gap = wording.only(result.pick(reference="rise", variant="copy last frame"))  # paired, clip by clip
        lead = "better than" if gap["low"] > 0 else "worse than" if gap["high"] < 0 else "not measurably unlike"
        parts.append(
            f"The model's x0 error of {wording.scored(base)} is {lead} that of a still picture, "
            f"{wording.scored(still)}. In {'pixels' if unit else 'latents'}, {best}the model {own:.1f}{unit}, decoded "
            f"noise {noise:.1f}{unit}."
        )
    elif ablation == "one step":
        parts.append(_steps(result, base))
    else:
        parts.append(" ".join(wording.ranking(result, ablation=ablation)))
        site = {"no attention": ("layer", "head"), "no MLP": ("layer",)}.get(ablation, ())
        singles = [wording.components(result, ablation, one, mode) for one in site for mode in result.modes]
        if any(singles):
            parts.append("One at a time:\n" + "\n".join(f"- {single}" for single in singles if single))
    return "\n\n".join(part for part in parts if part)


def _steps(result: AblationResult, base: Any) -> str:
    table = wording.rises(result, ablation="one step")
    table = table.assign(steps=[int(v.split()[0]) for v in table["variant"]]).sort_values("steps")
    one, motion = table.iloc[0], result.pick("motion error", variant=table.iloc[0]["variant"])["value"].iloc[0]
    full = result.pick("motion error", ablation="intact", protocol="sample")["value"].iloc[0]
    enough = next((int(row["steps"]) for _, row in table.iterrows() if not row["clear"]), None)
    text = (
        f"With {plural(int(one['steps']), 'step')} the x0 error is {number(one['error'])}, "
        f"{wording.times(one['error'], base['value'])} with {table['steps'].max()}; the motion error is "
        f"{number(motion)} against {number(full)}."
    )
    if enough is not None and enough < int(table["steps"].max()):
        text += f" More than {plural(enough, 'step')} do not lower the x0 error measurably."
    lowest = table.loc[table["error"].idxmin()]
    if lowest["high"] < 0 and result.in_pixels:
        sharp = result.pick("sharpness", ablation="one step").set_index("variant")["value"]
        text += (
            f" It is lowest with {lowest['variant']}, at a sharpness of {number(sharp[lowest['variant']])} against "
            f"{number(sharp.iloc[-1])}: squared error rewards the average of all possible futures, which few steps "
            "give, over one sharp one."
        )
    return text
