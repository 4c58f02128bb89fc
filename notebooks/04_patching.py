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
# # Patching
#
# Two runs of a model that differ in one thing; activations of one are put into the other, one place at a time. What
# brings the difference along carries it. First `tiny-induction`: *which heads carry an earlier snippet to the noisy
# frame?* Then `tiny-crafter`: *where does the action act?*
#
# Clips are ".. A B .. A ?": the last frame is nearly pure noise and is B, which came once before. In the corrupted
# clips that one earlier frame, B, is another image. Both runs share their noise.

# %%
import pandas as pd
import torch

import vdinterp as vd

pipe = vd.load("tiny-induction")
clips = vd.data.make_clips("one_off", n=16)
content = {"clean": clips, "corrupted": clips.corrupt, "noise_levels": 0.95}
quiet = {"sweep_options": {"progress": False, "trials_per_pass": 1}}
vd.Contrast(pipe, **content)

# %% [markdown]
# ## Which heads?
#
# *Denoising*: the clean run's head output goes into the corrupted run. What is enough to restore the clean answer?
# `recovered` is 0 for the corrupted run and 1 for the clean one. Move the slider over noise levels: which cells stay
# dark?

# %%
across_levels = vd.activation_patch(
    pipe, clips, clips.corrupt, (0.5, 0.8, 0.95), site="z", over=("layer", "head", "level"), **quiet
)
for level in range(3):
    top_heads = across_levels.values[:, :, level].flatten().topk(2).indices.tolist()
    assert top_heads == [3 * 4 + 3, 3 * 4 + 2], "3.3, then 3.2, at every level"
across_levels.plot()

# %% [markdown]
# Heads 3.3 and 3.2, at every level. *Noising* is the reverse: what does the clean run need? Here both agree. They need
# not: a component with a backup is enough without being needed. (Noising starts from the clean run, at 1: the lower a
# value, the more was needed.)

# %%
enough = vd.activation_patch(pipe, **content, **quiet)
needed = vd.activation_patch(pipe, **content, direction="noising", **quiet)
assert torch.allclose(across_levels.values[:, :, 2], enough.values, atol=1e-4), "level .95 of the first sweep"
assert enough.values[3, 3] > 0.5 and needed.values[3, 3] < 0.5, "3.3 is nearly enough, and needed"
needed.summary()

# %% [markdown]
# ## Where in the stream?
#
# The whole stream before each layer, one frame at a time. Frames 5 to 11 add up to 1 in every layer: the image stays in
# its own frame (which one it is differs by clip) until layer 3 fetches it. See that the last column, the noisy frame,
# is empty from top to bottom.

# %%
stream = vd.activation_patch(pipe, **content, site="resid_pre", over=("layer", "frame"), **quiet)
ones = torch.ones(4, dtype=torch.float64)
assert torch.allclose(stream.values.sum(1), ones, atol=0.1), "nothing moves before layer 3"
assert stream.values[:, -1].abs().max() < 0.05, "nothing has reached the noisy frame"
stream.plot()

# %% [markdown]
# ## Where it looks, or what it reads?
#
# Patching `pattern` makes a layer attend as in the other run; patching `v` changes what it reads there. One cell should
# stand out.


# %%
def by_layer(sites, pipe, direction="denoising", **contrast):
    """What patching a site of one layer does, for every site and layer."""
    results = [
        vd.activation_patch(pipe, **contrast, site=site, over=("layer",), direction=direction, **quiet)
        for site in sites
    ]
    return torch.stack([result.values for result in results])


def drawn(values, sites, title):
    return vd.plotting.heatmap(
        values,
        x=[str(layer) for layer in range(values.shape[1])],
        y=sites,
        title=title,
        x_title="layer",
        y_title="site",
        value_title="recovered (0 corrupted, 1 clean)",
        zmin=-1,
        zmax=1,
        diverging=True,
    )


attention = ["pattern", "q", "k", "v", "z"]
part = {site: index for index, site in enumerate(attention)}
content_parts = by_layer(attention, pipe, **content)
assert content_parts[part["v"], 3] > 0.8 and content_parts[part["pattern"]].abs().max() < 0.15
drawn(content_parts, attention, "Another image in frame B: clean into corrupted")

# %% [markdown]
# Only the values of layer 3. So are patterns unimportant? No: this contrast changes what is copied; *which* frame is to
# be copied is the same in both runs. Patching shows what differs between the two runs, and nothing else.
#
# ## Another contrast: matching
#
# Now B stays, and the frame before it, A, is another image. The model does not find the place any more. First what is
# enough, then what is needed (there, 1 is *not* needed): the second has more cells, in earlier layers.

# %%
batch = torch.arange(len(clips))
match = clips.labels["match"][:, -1]
video = clips.video.clone()
video[batch, match - 1] = clips.corrupt.video[batch, match]
matching = {"clean": clips.latents, "corrupted": video * 2 - 1, "noise_levels": 0.95}
matching_enough = by_layer(attention, pipe, **matching)
matching_needed = by_layer(attention, pipe, direction="noising", **matching)
assert matching_enough[part["pattern"], 3] > 0.7 and matching_enough[part["v"], 3] < 0.1
assert matching_enough[[part["q"], part["k"]], 3].max() < 0.5, "queries and keys only work together"
assert (matching_needed[part["pattern"]] < 0.6).all() and (matching_enough[part["pattern"], :3] < 0.25).all()
drawn(matching_enough, attention, "Another image before B: clean into corrupted (what is enough?)")

# %%
drawn(matching_needed, attention, "Another image before B: corrupted into clean (what is needed?)")

# %% [markdown]
# Enough is layer 3's pattern: once it looks at the right frame, the rest is done. Its queries alone, or its keys, are
# not, as each has to fit the other. Needed is a chain of heads in layers 0, 1 and 2 that makes keys and queries.
# One direction shows the end of a circuit, the other its whole length. By head: cells below 1 form a chain from layer 0
# to layer 3.

# %%
chain = vd.activation_patch(pipe, **matching, direction="noising", **quiet)
assert (chain.values[[0, 1, 1, 2, 2, 2, 3], [0, 0, 2, 0, 1, 3, 3]] < 0.8).all(), "the chain is needed"
chain.plot()

# %% [markdown]
# ## Who tells whom: path patching
#
# A head's output is corrupted only as one receiver reads it; everything between keeps its clean output. 1.2 tells the
# values of 2.0 and 2.1; they tell the keys and queries of 3.3 and 3.2; these write to the output. This is the induction
# circuit: what came before a frame is moved to that frame, and used there as the key to find it. Read a row as "this
# head tells", a column as "this part of that head listens"; most cells are empty.

# %%
receivers = ["2.0.k", "2.0.v", "2.1.k", "2.1.v", "3.2.q", "3.2.k", "3.2.v", "3.3.q", "3.3.k", "3.3.v", "final"]
senders = ["0.0", "1.0", "1.2", "2.0", "2.1", "2.3", "3.2", "3.3"]
paths = vd.path_patch(pipe, **matching, senders=senders, receivers=receivers, direction="noising", **quiet)


def path(result, sender, receiver):
    return float(result.values[result.senders.index(sender), result.receivers.index(receiver)])


assert path(paths, "1.2", "2.0.v") < -0.1 and path(paths, "1.2", "2.1.v") < -0.1
assert path(paths, "2.1", "3.3.k") < -0.2 and path(paths, "2.0", "3.3.k") < -0.1 and path(paths, "2.1", "3.3.q") < -0.1
assert abs(path(paths, "1.2", "3.3.k")) < 0.05, "1.2 tells 3.3 nothing by itself"
assert max(abs(path(paths, sender, "3.3.v")) for sender in ("1.2", "2.0", "2.1")) < 0.05
paths.plot()

# %% [markdown]
# In the first contrast the path is short: the embedding itself is what the copying heads read as values.

# %%
copied = vd.path_patch(
    pipe, **content, senders=["embed", "1.2", "2.0", "2.1"], receivers=["3.2.v", "3.3.k", "3.3.v"], **quiet
)
assert path(copied, "embed", "3.3.v") > 0.5 and path(copied, "embed", "3.2.v") > 0.1
copied.summary()

# %% [markdown]
# ## Attribution patching: an estimate
#
# One backward pass estimates every entry at once. It is always reported with exact patching of a sample beside it, and
# here of all 16 heads. Spearman was .83 to .97 on other clips: most heads do next to nothing, and their order is noise.
# Points on the diagonal are estimated well.

# %%
estimate = vd.attribution_patch(pipe, **content, **quiet)
assert estimate.agreement.spearman > 0.7
estimate.plot()[-1]

# %% [markdown]
# ## Edges, and how few are enough
#
# Every edge of the head-level graph, scored by gradients, in both contrasts. Drawn are those of matching; corrupting an
# edge that carries the result lowers the metric. Find the chain of the path patching in it.

# %%
edges = {
    "content": vd.edge_attribution(pipe, **content, n_steps=4, batch=8),
    "matching": vd.edge_attribution(pipe, **matching, direction="noising", n_steps=4, batch=8),
}
edges["matching"].plot()[0]

# %% [markdown]
# Does a circuit do the task by itself? The strongest edges are kept and all others are put at their mean, on clips that
# no score has seen. The circuit of one contrast does little: edges of content hold what to copy but not how to find it,
# and the reverse. Only both together work. Even so it takes about a fifth of all edges: a long way from the two heads
# that patching showed. Curves need not rise, as means and kept edges can disagree. Compare "both" with the other two,
# and all with edges kept at random.

# %%
scores = pd.concat([result.to_frame() for result in edges.values()])
both = scores.assign(score=scores["score"].abs()).groupby(["sender", "receiver"])["score"].sum()
rankings = {**edges, "both": list(both.sort_values(ascending=False).index)}
unseen = vd.data.make_clips("one_off", n=8, seed=100)
curves = {
    name: vd.faithfulness(pipe, ranked, unseen, 0.95, sizes=(4, 32, 64, 96, 192), batch=8).to_frame()
    for name, ranked in rankings.items()
}
kept = {name: curve.set_index("n_edges") for name, curve in curves.items()}
assert kept["both"]["recovered"][96] > 0.7, "a fifth of the edges does most"
assert max(kept["content"]["recovered"][96], kept["matching"]["recovered"][96]) < kept["both"]["recovered"][96] - 0.1
assert kept["both"]["random"][96] < 0.1 and kept["both"]["recovered"][479] == 1
shown = [curve.assign(edges=name, value=curve["recovered"]) for name, curve in curves.items()]
at_random = curves["both"].assign(edges="at random", value=curves["both"]["random"], low=None, high=None)
vd.plotting.lines(
    pd.concat([*shown, at_random.astype({"low": float, "high": float})]),
    x="n_edges",
    y="value",
    low="low",
    high="high",
    color="edges",
    title="What circuits of the strongest edges recover, on unseen clips",
    x_title="edges that are kept, of 479",
    y_title="recovered (0 all at their mean, 1 the whole model)",
)

# %% [markdown]
# # Where does the action act?
#
# `tiny-crafter` sees seven frames of a game and an action, and finds the eighth. Clean and corrupted have the same
# frames; in the corrupted run the last action is the opposite move. Only clips whose last step really moved count.

# %%
world = vd.load("tiny-crafter")
last = world.model.cfg.n_frames - 1
play, told_opposite = vd.studies.pairs_of(world, 8)
acts = {"clean": play, "corrupted": told_opposite, "noise_levels": 0.9}
condition = vd.activation_patch(world, **acts, site="cond", over=("frame",), **quiet)
assert condition.values[last] > 0.99 and condition.values[:last].abs().max() < 0.01
condition.to_frame().round(2)

# %% [markdown]
# The condition of the last frame is the only thing that differs. It acts through modulations: a shift, a scale and a
# gate for every sublayer and frame. One at a time; two cells stand out:

# %%
modulations = [f"{sublayer}.mod.{name}" for sublayer in ("attn", "mlp") for name in ("shift", "scale", "gate")]
modulated = by_layer(modulations, world, **acts)
places = {(modulations[index // 4], index % 4) for index in modulated.flatten().topk(2).indices.tolist()}
assert places == {("mlp.mod.gate", 1), ("attn.mod.scale", 2)} and modulated.max() < 0.5
drawn(modulated, modulations, "The action's modulations: clean into corrupted")

# %% [markdown]
# Neither is enough: the gate of layer 1's MLP, and the scale with which layer 2's attention reads. Then attention, by
# part and layer:

# %%
acts_parts = by_layer(attention, world, **acts)
assert acts_parts[part["q"], 2] > 0.6 and acts_parts[[part["k"], part["v"]], 2].abs().max() < 0.05
drawn(acts_parts, attention, "The action in attention: clean into corrupted")

# %% [markdown]
# Layer 2, its queries. By head:

# %%
acts_heads = vd.activation_patch(world, **acts, site="q", over=("layer", "head"), **quiet)
assert acts_heads.values.argmax() == 2 * 3 + 0 and acts_heads.values[2, 0] > 0.5, "the scroll head"
acts_heads.plot()

# %% [markdown]
# One head, 2.0, the scroll head, and there it is the *queries*: keys and values do not matter. The action does not
# change what is there to be read, it changes where the head looks. Further heads of layer 3 help a little.
#
# The stream of the last frame fills up layer by layer; before layer 0 nothing of the action is in it.

# %%
acts_stream = vd.activation_patch(world, **acts, site="resid_pre", over=("layer", "frame"), **quiet)
assert acts_stream.values[0].abs().max() < 0.01 and (acts_stream.values[:, last].diff() > 0.05).all()
assert acts_stream.values[:, :last].abs().max() < 0.05, "only in the last frame"
acts_stream.plot()

# %% [markdown]
# ## When is it decided?
#
# Whole trajectories now, six denoising steps. From a step on, the corrupted run gets the clean run's activations.
# Step 0 is the whole trajectory; patching that begins in the last steps comes too late. The lower the value of a
# step, the more was decided before it.

# %%
walks = {"clean": play[:4], "corrupted": told_opposite[:4], "steps": 6, "n_context": last}
when = vd.activation_patch(world, **walks, site="cond", over=("step",), at="from", **quiet)
assert when.values[0] > 0.99 and when.values[-1] < 0.1 and (when.values.diff() < 0.01).all()
when.plot()

# %% [markdown]
# The same with the heads of one layer at a time: layer 2 carries most of it.

# %%
when_head = vd.activation_patch(world, **walks, site="z", over=("layer", "step"), at="from", **quiet)
assert when_head.values[:, 0].argmax() == 2, "layer 2, over the whole trajectory"
when_head.plot()
