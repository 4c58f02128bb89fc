"""The meaning of every special word that summaries, figures and tables use, in one table. Reports quote what they use.

A word is looked for as it is written here, with a plural s, in any case; alternatives are separated by ` / `, and the
first one heads the entry.
"""

from __future__ import annotations

import re

TERMS: dict[str, str] = {
    # What the model does
    "context frame / context": "A frame that the model is given clean. The others are target frames.",
    "target frame / target": "A frame that the model has to denoise or generate.",
    "noise level": "How noisy the target frames are: 0 clean, 1 pure noise.",
    "latents / latent": "What the codec makes of pixels and the model works on; for a model of pixels, the pixels.",
    "denoising step": "One pass of the model in sampling; many of them turn noise into a clip.",
    "DDIM": "Sampling without fresh noise: the same noise always gives the same clip.",
    "VAE round trip / round trip": "The true video encoded and decoded by the codec, without any model between.",
    "x0": "The model's estimate of the clean latents.",
    "head": "An attention head; `3.1` is head 1 of layer 3, both counted from 0.",
    "AdaLN / modulation": "Shift, scale and gate of every sublayer, made from the frame's noise level (and action).",
    "MLP": "The sublayer of a block that works on each token by itself.",
    "token / patch": "One patch of one latent frame: what attention is between.",
    "residual stream / stream": "What every block reads from and adds to; the last state of it becomes the prediction.",
    # Scores
    "x0 error": "Squared error of x0 over the variance of the true latents: 0 perfect, 1 what the mean frame scores.",
    "mean frame": "The average of all frames, as a guess that needs no model.",
    "still picture / copy last frame": "The last context frame repeated, as a guess that needs no model.",
    "motion error": "Squared error of frame differences over their mean square: 0 perfect, 1 a still picture.",
    "sharpness": "Gradient energy of a frame over that of the true one: 1 as sharp, less is blur, more is noise.",
    "PSNR": "Peak signal-to-noise ratio of pixels in dB; higher is better, 60 is shown for equal pictures.",
    "SSIM": "Structural similarity of pixels: 1 equal, near 0 unrelated.",
    "rise": "A score minus the untouched model's on the same clips.",
    "95 % interval / 95 % / interval": "Where the mean over other such clips would lie (bootstrap over clips); absent "
    "for a single clip.",
    "chance": "What the same score is without any information, for example of uniform attention.",
    "selectivity": "For neurons, correlation of the activation with a label; for probes, the score minus that of the "
    "same probe with shuffled labels.",
    "Spearman": "Rank correlation, -1 to 1: whether two scores order things alike; chance is 0.",
    # Interventions
    "intact / untouched": "The model as it is, with nothing ablated or patched.",
    "ablation / ablated": "Taking a component's output away: replacing it by 0, by its mean, or as said.",
    "mean ablation / at its mean / replaced by its mean / by their mean": "A component's output is replaced by its "
    "average over clips, frames and places: what it says about this clip is gone, what it always adds stays.",
    "patched / activation patching / patching": "An activation of one run is put into another run of the same noise.",
    "clean run / clean": "The run on the original clip (in patching); of frames: without noise.",
    "corrupted run / corrupted": "The run on the changed clip or action, with the same noise as the clean one.",
    "recovered": "How far a patched run came from the corrupted run (0) to the clean one (1), along the line between "
    "their x0.",
    "needed": "1 minus `recovered` where corrupted activations are put into the clean run: 0 nothing is lost, 1 all "
    "of the difference is.",
    "noising": "Corrupted activations are put into the clean run: what is needed?",
    "denoising direction": "Clean activations are put into the corrupted run: what is enough to restore it?",
    "direct effect / directly": "Only what a head writes into the prediction itself.",
    "total effect": "All that changes without a head, through later components as well.",
    # What heads and neurons do
    "attention mass": "The share of a query's attention that goes to a set of keys; all keys together have 1.",
    "displacement": "From a query token to a key token: frames, rows and columns.",
    "scroll": "For clips with actions: the place that the action moves the picture from, one frame back.",
    "lens": "The final layer applied to the stream before a block, as if it were the last (the logit lens).",
    "tuned lens": "The lens after an affine map for every block, trained so that the prediction comes out.",
    "share of the prediction / share": "Of a component: projection of what it writes on the whole prediction; all "
    "components together have 1.",
    "probe": "A linear map trained to read a label from activations.",
    "baseline": "The same score without what is tested: shuffled labels, shuffled weights, or the input alone.",
    "balanced accuracy": "Accuracy averaged over classes, so that frequent ones count no more.",
    # Induction
    "induction": "A B came before, A comes again, and the model foretells B by looking up what followed A.",
    "prefix matching": "Share of a head's attention to clean frames on the frame that followed A, minus chance.",
    "previous-frame head": "A head that looks at the frame before.",
    "successor": "The frame that came after the earlier A: what the last frame has to repeat.",
    "control clip": "The same clip with the same last frame and noise, and one thing taken away.",
    "distractor": "A frame that a head might look at for another reason than that it followed A.",
    "copy gain": "How much of the content that a head looks at it brings into the prediction, 0 to 1.",
    "lag": "How many frames lie between the last frame and its earlier copy.",
    "one-off": "A clip in which A B comes once, among frames that differ, before A comes again.",
    "loop": "A clip of frames in a cycle.",
}


def used(text: str) -> dict[str, str]:
    """Of `TERMS`, those that occur in a text, in the table's order."""
    return {names[0]: meaning for names, meaning in _ENTRIES if any(_pattern(name).search(text) for name in names)}


_ENTRIES = [(key.split(" / "), meaning) for key, meaning in TERMS.items()]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?:s|es)?(?![\w-])", re.IGNORECASE)
