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
# # What caused it? Patching activations, paths and edges
#
# Two runs of one model that share their noise: a *clean* one, and a *corrupted* one in which something is different.
# Put an activation of the clean run into the corrupted one, and see how much of the difference comes with it.
#
# Everything is measured in x0, as *recovered*: 0 is what the corrupted run says, 1 what the clean run says.

# %%
import vdinterp as vd

quiet = {"progress": False}

# %% [markdown]
# ## Which heads carry the earlier frame to the noisy one?
#
# In these clips the last frame has been seen once before. It is nearly pure noise here, and `tiny-induction` has to
# find its earlier occurrence and copy it. The corrupted twin shows another image at that earlier place.

# %%
pipe = vd.load("tiny-induction")
clips = vd.data.make_clips("one_off", n=12, seed=5)
runs = {"model": pipe, "clean": clips, "corrupted": clips.corrupt, "noise_levels": 0.95, "sweep_options": quiet}

heads = vd.activation_patch(**runs, site="z", over=("layer", "head"))
next(iter(heads.plot().values())).show()

# %% [markdown]
# Three heads of the last layer do it, 3.3 most of all. Denoising asks what is *enough*; the other direction, corrupted
# activations in the clean run, what is *needed*: 1 means that nothing was lost.

# %%
needed = vd.activation_patch(**runs, site="z", over=("layer", "head"), direction="noising")
next(iter(needed.plot().values())).show()

# %% [markdown]
# Do these heads look elsewhere, or do they find something else there? `pattern` gives a head the other run's attention
# with its own values; `v` the other run's values with its own attention.

# %%
attention = vd.activation_patch(**runs, site="pattern", over=("layer", "head"))
values = vd.activation_patch(**runs, site="v", over=("layer", "head"))
print(f"head 3.3: attention {attention.values[3, 3]:.2f}, values {values.values[3, 3]:.2f}")

# %% [markdown]
# The values. That is as it must be: the two clips differ in *what* is to be copied, not in *where* it is, so this
# contrast says nothing of how the place is found. Where does the stream hold it, frame by frame?

# %%
stream = vd.activation_patch(**runs, site="resid_pre", over=("layer", "frame"))
next(iter(stream.plot().values())).show()

# %% [markdown]
# ## Paths
#
# What does one component tell another, everything else held still? From the patch embedding and the early heads to head
# 3.3's query, key and value, and from 3.3 on to the final layer.

# %%
paths = vd.path_patch(
    **runs,
    senders=["embed", "0.0", "0.3", "1.2", "mlp.0", "3.3"],
    receivers=["3.3.q", "3.3.k", "3.3.v", "mlp.3", "final"],
)
next(iter(paths.plot().values())).show()

# %% [markdown]
# The pixels reach head 3.3's values straight from the patch embedding, and its output reaches the prediction straight.
#
# ## All at once, from one backward pass
#
# Attribution patching estimates every entry from gradients. It always says how far to trust it.

# %%
estimate = vd.attribution_patch(**runs, site="z", over=("layer", "head"), sample=16)
print(estimate.agreement.sentence())
list(estimate.plot().values())[-1].show()

# %% [markdown]
# The same for every edge of the graph of heads and MLPs, and how many of the strongest edges one needs to keep before
# the model still does what it does, with all others at their mean.

# %%
edges = vd.edge_attribution(**{name: value for name, value in runs.items() if name != "sweep_options"})
next(iter(edges.plot().values())).show()

# %%
curve = vd.faithfulness(pipe, edges, clips, 0.95, sizes=(2, 16, 64, 128, 256), batch=12)
print(curve.summary())
next(iter(curve.plot().values())).show()

# %% [markdown]
# A lesson: two edges carry nearly all of the *difference* between the runs, and keeping these two alone recovers nearly
# nothing. The difference is only what is copied. Finding the place takes hundreds of further edges, which are the same
# in both runs and so have no score.
#
# ## Where does the action act?
#
# `tiny-crafter` is told the player's action. Clean and corrupted show the same frames and differ in the last action
# only: the corrupted run is told the opposite move.

# %%
game = vd.load("tiny-crafter")
clean, opposite = vd.studies.pairs_of(game, 4)
world = {"model": game, "clean": clean, "corrupted": opposite, "noise_levels": 0.9, "sweep_options": quiet}

where = vd.activation_patch(**world, site="cond", over=("frame",))
parts = {part: vd.activation_patch(**world, site=part, over=("layer", "head")) for part in ("q", "k", "v")}
for part, result in parts.items():
    print(f"{part}: head 2.0 {result.values[2, 0]:.2f}, all heads together {result.values.sum():.2f}")
next(iter(parts["q"].plot().values())).show()

# %% [markdown]
# The whole difference enters at the condition of the last frame. It works through the *queries* of head 2.0, the scroll
# head: the action tells it where to look, not what to take from there. Through which modulation?

# %%
modulation = {
    site: vd.activation_patch(**world, site=site, over=("layer",)).values
    for site in ("mod.shift", "mod.scale", "mod.gate")
}
for site, recovered in modulation.items():
    print(f"{site:10}", " ".join(f"layer {layer}: {value:.2f}" for layer, value in enumerate(recovered)))

# %% [markdown]
# No single one: scales of layer 2 and gates of layer 1 carry about a third each, so the action is worked on in several
# places before head 2.0 asks.
#
# ## When is it decided?
#
# Whole trajectories: the true action is given from a denoising step on, with the wrong one before.

# %%
late = vd.activation_patch(
    game, clean[:3], opposite[:3], steps=8, n_context=7, site="cond", over=("step",), at="from", sweep_options=quiet
)
next(iter(late.plot().values())).show()

# %% [markdown]
# ## What must be true
#
# The claims of this notebook, checked.

# %%
assert heads.untouched == {"clean": 1.0, "corrupted": 0.0}
assert heads.values.argmax() == 15 and heads.values[3, 1:].sum() > 0.8, "three heads of the last layer carry it"
assert needed.values.argmin() == 15, "and it is needed"
assert values.values[3, 3] > 0.5 > 10 * abs(attention.values[3, 3]), "values, not attention"
source = stream.values[0]
assert source.sum() > 0.5
total = paths.to_frame().set_index(["sender", "receiver"])["value"]
assert total["embed", "3.3.v"] > 0.5 and total["3.3", "final"] > 0.5
assert estimate.agreement.spearman >= 0.8
assert set(edges.circuit(2)) == {("3.3", "final"), ("embed", "3.3.v")}
kept = curve.to_frame().set_index("n_edges")["recovered"]
assert kept[2] < 0.2 and kept.iloc[-1] == 1
assert where.values[-1] > 0.99 and where.values[:-1].abs().max() < 1e-6, "the condition of the last frame alone"
assert parts["q"].values.argmax() == 6 and parts["q"].values[2, 0] > 0.4, "the queries of head 2.0"
assert max(parts["k"].values[2, 0].abs(), parts["v"].values[2, 0].abs()) < 0.1
assert max(float(recovered.max()) for recovered in modulation.values()) < 0.6, "no modulation alone"
assert late.values[0] > 0.99 and late.values[0] > late.values[3] > late.values[-1], "the earlier the more"
