"""What is put in an ablated component's place: activations of the untouched model, on other clips or on these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.analysis.stimulus.noised_clips import NoisedClips
from vdinterp.interventions import SAMPLE_AXES
from vdinterp.store import key_of

if TYPE_CHECKING:
    from vdinterp.studies.bench import Bench

Activations = Mapping[str, torch.Tensor]
MOST_KEPT = 8  # recordings of single batches kept in memory


class References:
    """Recordings under the noise levels of a bench. `level` None: one recording for every step of an intact sample;
    otherwise one recording, with the target frames at that level."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._kept: dict[Any, list[Activations]] = {}

    def means(self, names: Sequence[str], level: float | None = None) -> list[dict[str, torch.Tensor]]:
        """Mean activations over the reference clips, their frames and positions; axes averaged over have size 1.

        One mean for each step, because a mean over all steps would also take away how noisy the frame is, which every
        component can tell from its modulation: an ablation by mean should remove what a component says about *this
        clip*, and nothing else.
        """
        names = sorted(names)
        stored = self.bench.ledger.get(key_of("means", names, level), lambda: self._record_means(names, level))
        n_steps = 1 + max(int(key.split("/")[0]) for key in stored)
        return [{name: stored[f"{step}/{name}"] for name in names} for step in range(n_steps)]

    def _record_means(self, names: list[str], level: float | None) -> dict[str, torch.Tensor]:
        bench, n_clips = self.bench, len(self.bench.reference)
        axes = {
            name: [axis for axis, dim in enumerate(bench.pipe.model.hook_dict[name].dims) if dim in SAMPLE_AXES]
            for name in names
        }
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, n_clips, bench.batch):
            clips = list(range(start, min(start + bench.batch, n_clips)))
            for step, activations in enumerate(self._of_reference(names, level, clips)):
                for name in names:
                    part = activations[name].double().mean(axes[name], keepdim=True).cpu() * len(clips)
                    key = f"{step}/{name}"
                    sums[key] = sums[key] + part if key in sums else part
        return {key: (total / n_clips).float() for key, total in sums.items()}

    def other_clips(self, names: Sequence[str], level: float | None, clips: slice) -> list[Activations]:
        """Activations on one reference clip for each of `clips`: the next one, so that it is another clip even where
        the reference is the judged clips themselves."""
        which = [(index + 1) % len(self.bench.reference) for index in range(clips.start, clips.stop)]
        return self._keep(("other", tuple(names), level, clips.start), lambda: self._of_reference(names, level, which))

    def own(self, names: Sequence[str], level: float | None, clips: slice) -> list[Activations]:
        """Activations on these very clips, from the same noise."""
        stimulus = self.bench.stimulus
        return self._keep(("own", tuple(names), level, clips.start), lambda: self._run(names, level, stimulus, clips))

    def _keep(self, key: Any, record: Any) -> list[Activations]:
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = list(record())
        return self._kept[key]

    def _of_reference(self, names: Sequence[str], level: float | None, which: list[int]) -> Iterator[Activations]:
        return self._run(names, level, self.bench.others, torch.tensor(which))

    def _run(
        self, names: Sequence[str], level: float | None, noised: NoisedClips, which: slice | torch.Tensor
    ) -> Iterator[Activations]:
        bench, pipe, names = self.bench, self.bench.pipe, list(names)
        if level is None:
            context, given = (
                noised.latents[which][:, : bench.n_context],
                {"noise": noised.noise[which], "cond": noised.cond[which]},
            )
            for state in pipe.iterate(context, bench.n_frames, steps=bench.steps, record=names, **given):
                assert state.cache is not None
                yield state.cache
            return
        with torch.no_grad(), pipe.model.record(names) as recording:
            pipe.denoise(*noised.inputs(level, which))
        yield recording[0]
