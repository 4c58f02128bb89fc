# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MLPs and probes
#
# What does every MLP neuron of `tiny-crafter` fire for, what does it write, and is it needed? And what can be read off
# the stream that could not be read off the input?

# %%
import vdinterp as vd
from vdinterp.data import crafter

pipe = vd.load("tiny-crafter")
clips = vd.data.sample_clips("crafter", n=72, n_frames=8)
noised = vd.NoisedClips(pipe, clips, noise_levels=(0.3, 0.9))

# %% [markdown]
# ## Neurons
#
# One pass over the clips; of every neuron only its best patches and running sums are kept. Selectivity: correlation of
# the activation with a label (here what the game says a cell is), beside what the labels of *other* clips give. Is
# there a tree, a stone, iron in each box?

# %%
found = vd.neurons.top_patches(noised, labels=clips.labels["semantic_map"], label_names=list(crafter.SEMANTIC))
picked = found.most_selective(1, "tree") + found.most_selective(1, "stone") + found.most_selective(1, "iron")
assert len(found.table) == 4 * 384
found.plot(picked)

# %%
found.summary()

# %% [markdown]
# Selective is not needed: with one of the three at its mean, the error of the last frame changes by less than a
# thousandth of the variance, about as much as with random neurons of the layer (`control`). Others stand in for it.
# `found.to_html("neurons.html")` is a page to browse all 1,536.

# %%
few = vd.NoisedClips(pipe, clips[:32], noise_levels=(0.6,))
effects = vd.neurons.ablation_effects(
    few,
    picked,
    labels=clips.labels["semantic_map"][:32],
    label_names=list(crafter.SEMANTIC),
    sweep_options={"progress": False},
)
assert effects.table["effect"].abs().max() < 0.001
effects.table

# %% [markdown]
# ## Probes
#
# A linear probe says what can be read, not what is used, and the input itself can often be read as well. So every probe
# stands beside the noisy input (with neighbours), shuffled labels, and the same network with its weights shuffled.
# Compare the two noise levels: where is the probe above all of them?

# %%
materials = vd.studies.labels_of(clips, "material", noised.target)
read = vd.probes.fit(
    noised, materials.values, names=materials.names, what="material of a cell", mask=materials.mask, max_tokens=8
)
values, inputs = read.values(), read.values("noisy input, neighbours")
assert values[:, 0].max() > 0.95 and read.values("noisy input")[:, 0].max() > 0.95, "the input wins at a low level"
assert values[:, 1].max() > inputs[:, 1].max() + 0.1, "and not at a high one"
assert read.values("shuffled").max() < 0.35
read

# %% [markdown]
# At a low noise level the input says it all, and the baseline wins. At a high one the network has looked it up in the
# frames before.
#
# Whether a step succeeded is in no frame before the last: the network has to put the action and the cell ahead
# together.

# %%
moved = vd.studies.labels_of(clips, "moved", noised.target)
step = vd.probes.fit(noised, moved.values, names=moved.names, what="does the step succeed", mask=moved.mask)
assert step.values()[:, 1].max() > 0.9 > 0.75 > step.values("noisy input, neighbours")[:, 1].max()
step.summary()

# %% [markdown]
# ## A direction to intervene on
#
# What a probe reads with can be erased: `vd.Ablate(..., subspace=probe.subspace(layer, level))`. Readable is not used:
# the prediction hardly minds losing the material's subspace after layer 0, where later layers can look it up again.

# %%
layer = 0
subspace = read.subspace(layer, 0.9)
means = noised.cache(0.9, ["resid_post"], slice(0, 72))
name = f"blocks.{layer}.hook_resid_post"
erase = vd.Ablate(name, mode="mean", reference={name: means[name]}, frames=[7], subspace=subspace)
everything = vd.Ablate(name, mode="mean", reference={name: means[name]}, frames=[7])
ways = {"intact": (), "without the subspace": (erase,), "without the stream": (everything,)}
error = {what: float(noised.x0_error(0.9, *how).mean()) for what, how in ways.items()}
assert error["without the stream"] > 2 * error["intact"] and error["without the subspace"] < error["without the stream"]
{what: round(value, 3) for what, value in error.items()}
