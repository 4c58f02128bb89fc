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
# # Residual stream and circuits
#
# What does the stream hold, layer by layer? Who writes the prediction? What do single heads move and look for, and what
# does AdaLN change with the noise level? On `tiny-induction`, `tiny-crafter`, and on organisms whose circuit is known.

# %%
import vdinterp as vd

crafter, induction = vd.load("tiny-crafter"), vd.load("tiny-induction")
clips = vd.data.sample_clips("crafter", n=24, n_frames=8)
train, noised = (vd.NoisedClips(crafter, part, noise_levels=(0.3, 0.9)) for part in (clips[:16], clips[16:]))

# %% [markdown]
# ## The lens
#
# The final layer, applied to the stream before every block, decoded through the VAE. Beside it a *tuned* lens: an
# affine map for every layer, trained on other clips. At a high noise level the next frame is there before the last
# block, but in a basis of its own: the tuned curve falls earlier than the plain one.

# %%
tuned = vd.tuned_lens(train, steps=100)
cache = noised.cache(0.9, None, slice(0, 8))
seen = vd.lens(crafter, cache, frames=noised.target, tuned=tuned)
error = seen.table.pivot(index="layer", columns="lens", values="error")
assert (error["tuned lens"][1:4] < error["lens"][1:4]).all() and error["tuned lens"][3] < 0.2
seen

# %% [markdown]
# ## Who writes the prediction?
#
# Exactly linear: patch embedding, every head, every MLP and every bias sum to x0, with LayerNorm's scales held. In
# `tiny-crafter` the carried stream is normalised at every sublayer, and the parts go through all of that. Long bars
# write much; those below 0 write against the prediction.

# %%
parts = vd.direct_attribution(crafter, cache, frames=noised.target)
print(f"parts miss x0 by at most {(parts.parts.sum(0) - parts.total).abs().max():.1e}")
assert (parts.parts.sum(0) - parts.total).abs().max() < 1e-4
assert (seen.x0[-1] - parts.total).abs().max() < 1e-5, "the lens ends where the parts add up to"
parts.plot()

# %% [markdown]
# What a head writes itself is not what is lost without it: heads that others read have a total effect only. In
# `tiny-induction` 1.2, 0.0 and 0.2 write nothing of the prediction, and all of layer 3 hangs on them: they stand high
# above the diagonal.

# %%
repeats = vd.data.make_clips("one_off", n=16)
effect = vd.analysis.direct_effect(vd.NoisedClips(induction, repeats, noise_levels=(0.9,)))
table = effect.table.set_index(["layer", "head"])
for head in ((1, 2), (0, 0)):
    assert table.loc[head, "total"] > 0.4 and abs(table.loc[head, "direct"]) < 0.05
assert abs(table.loc[(3, 3), "total"] / table.loc[(3, 3), "direct"] - 1) < 0.3
effect

# %% [markdown]
# ## Circuits from weights
#
# An organism has no normalisation of queries and keys, so weights say what its heads look for: at a noise level, and
# at a displacement. K-composition singles out the planted pair, and the copying score (in x0: +1 copies, -1 removes)
# the planted head. Look for the one dark cell.

# %%
organism = vd.organisms.build("induction", seed=3)
clean, dirty = 0, 0.95
composed = vd.circuits.composition(organism.model, clean, dirty, displacements=[(-6, 0, 0)], parts=["k", "q"])
best = composed.table[composed.table["part"] == "k"].nlargest(1, "score").iloc[0]
sender, receiver = (".".join(map(str, organism.heads[role])) for role in ("previous frame", "induction"))
assert (best["sender"], best["receiver"]) == (sender, receiver)
print(organism.heads)
composed

# %%
planted = vd.circuits.copying(organism, clean, dirty)
scores = planted.table.set_index(["layer", "head"])["value"]
assert scores.idxmax() == organism.heads["induction"] and scores.max() > 0.9
planted.plot()

# %% [markdown]
# `tiny-induction` normalises queries and keys, so for QK there is only what is measured on activations; OV needs no
# queries. The heads that the induction search names copy.

# %%
copying = vd.circuits.copying(induction, clean, dirty)
trained = copying.table.set_index(["layer", "head"])["value"]
assert trained.loc[(3, 3)] > 0.9 and trained.loc[(3, 2)] > 0.9
copying.plot()

# %% [markdown]
# The whole patch-to-patch circuit of head 3.3: what each of the 16 pixels of a patch it looks at does to each pixel of
# the prediction. A dark diagonal copies pixel by pixel.

# %%
whole = vd.circuits.patch_circuit(induction, 3, 3, clean, dirty)
whole.plot()

# %% [markdown]
# ## What AdaLN changes with the noise level
#
# From weights alone. `tiny-induction` opens its gates towards pure noise, where it has to find everything itself:
# follow the gates to the right.

# %%
atlas = vd.modulation_atlas(induction.model)
atlas
