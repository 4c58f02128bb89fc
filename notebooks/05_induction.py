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
# # Is there an induction circuit?
#
# Induction in a language model: ".. A B .. A" and the model says B, because one head tells every token what came before
# it, and a later head looks for the token whose predecessor was A. Does a video diffusion transformer do this?
#
# Here the last frame of a clip is nearly pure noise, all others are clean. `vd.find_induction` asks first *whether* the
# model foretells a frame that came back, then *who* looks at it, then whether that *matters*, and what else it could
# be. It starts with networks whose mechanism is known because somebody wired it.

# %%
import pandas as pd

import vdinterp as vd
from vdinterp.data.repeats import MEANING, TWINS

pd.set_option("display.max_colwidth", None)
light = {"noise_levels": (0.4, 0.95), "n_per_lag": 5, "designs": (), "repeats": 0, "progress": False}
pd.Series(MEANING | {f"twin: {name}": text for name, text in TWINS.items()}, name="what it is").to_frame()

# %% [markdown]
# ## Planted mechanisms
#
# Four organisms: an induction circuit, and three things that look like one on some clips: copying from a fixed
# distance, matching the noisy frame with its clean copy, and matching neighbours on both sides.

# %%
organisms = {kind: vd.organisms.build(kind, seed=2) for kind in ("induction", "duplicate", "symmetric")}
organisms["fixed_lag"] = vd.organisms.build("fixed_lag", seed=2, lag=6)
planted = {kind: vd.find_induction(organism, **light) for kind, organism in organisms.items()}
pd.DataFrame(
    {
        "verdict": {kind: found.verdict for kind, found in planted.items()},
        "heads found": {kind: str(found.heads) for kind, found in planted.items()},
        "heads planted": {kind: str(organism.heads) for kind, organism in organisms.items()},
        "why": {kind: found.reason for kind, found in planted.items()},
    }
)

# %%
assert planted["induction"].heads == [organisms["induction"].heads["induction"]]
assert planted["duplicate"].verdict == "duplicate matching" and planted["fixed_lag"].verdict == "position copying"
assert planted["symmetric"].verdict == "inconclusive"

# %% [markdown]
# ## `tiny-induction`
#
# Trained on loops and on snippets that come back after varying times. No circuit was asked for.

# %%
found = vd.find_induction(vd.load("tiny-induction"), **light | {"designs": ("translated", "occlusion")})
assert found.verdict == "induction" and found.heads[0] == (3, 3) and found.times_random > 3
found.summary()

# %% [markdown]
# Behaviour, by noise level: what does the error gain from each thing that a twin lacks? At a low level the frame's own
# content helps to find its copy, so losing the *predecessor* costs less than losing the copy; at a high level it costs
# all there is to lose. See where the curves meet; that the gain is there at every lag; and which kinds of repeats gain
# nothing.

# %%
relative = found.behaviour[(found.behaviour["lag"] == 0) & (found.behaviour["twin"] == "none")].set_index("design")
saved = relative["gain"] / relative["twin_error"]
assert saved.loc["occlusion"].min() > 0.5 > 0.1 > saved.loc["translated"].max()
gains = found.behaviour[(found.behaviour["design"] == "one-off") & (found.behaviour["lag"] == 0)]
share = gains.pivot(index="level", columns="twin", values="gain")
assert share.loc[0.4, "no match"] < 0.7 * share.loc[0.4, "no content"], "content helps at a low level"
assert share.loc[0.95, "no match"] > 0.9 * share.loc[0.95, "none"], "and not at a high one"
found.plot().about("gains over", "by lag", "saves")

# %% [markdown]
# Who looks? All of layer 3 but one head, at every level; for the best ones, over one clip; and where they look follows
# the lag. (On the language-model convention one would look at the attention of the frame *before* the answer. A
# denoiser predicts its own token: the noisy frame itself is what looks.) See the rows of layer 3; then that the bright
# frame of the strip is the one to copy; then that the heads' lines lie on the true lag.

# %%
scores = found.table[found.table["level"] == 0.95].set_index(["layer", "head"])
assert (scores.loc[found.heads, "q"] < 0.01).all()
found.plot().about("prefix matching of", "attention of", "lag that candidates")

# %% [markdown]
# Does it matter, and where does the match come from? Scores are not effects: 3.1 looks at the right frame about as much
# as 3.2, and is hardly needed. Compare the bars of single heads with that of all together; then follow the edges.

# %%
needed = found.ablation.set_index("set")["repeats"]
assert scores.loc[(3, 1), "prefix_matching"] > 0.5 and needed["head 3.1"] < 0.2 * needed["head 3.3"]
found.plot().about("rise of the x0 error", "the circuit")

# %%
found.controls[["control", "question", "value", "outcome"]]

# %% [markdown]
# ## `tiny-loop`
#
# The same network, trained on loops alone. It continues loops, and is lost when a pair came back only once: the gain by
# lag stays at 0.

# %%
loop = vd.find_induction(vd.load("tiny-loop"), **light)
assert loop.verdict == "period detector" and not loop.heads
loop.summary()

# %%
loop.plot().about("by lag")

# %% [markdown]
# ## Over training
#
# In which order do the parts form? (`vdinterp induction tiny-induction --checkpoints all` does all twelve.) Read from
# left to right which curve rises first.

# %%
steps = (0, 500, 1400, 2000, 7900)
pipes = {step: vd.load("tiny-induction", checkpoint=step) for step in steps}
along = vd.induction_over_training(pipes, n_per_lag=3, repeats=0, progress=False)
early, late = along.table.iloc[:3], along.table.iloc[-2:]
assert not (early["verdict"] == "induction").any() and (late["verdict"] == "induction").all()
first = {part: int(along.table["step"][along.table[part] >= along.table[part].max() / 2].iloc[0])
         for part in ("duplicate", "previous_frame", "prefix_matching")}  # fmt: skip
assert first["duplicate"] < first["previous_frame"] <= first["prefix_matching"]
along.plot()

# %%
along.table[["step", "verdict", "error", "duplicate", "previous_frame", "composition", "prefix_matching"]].round(2)

# %% [markdown]
# Matching of clean duplicates first; then attention to the frame before; then the composition of the two, and with it
# the error on repeats falls.
