"""Edges between components: what one writes into the residual stream, as another one reads it.

Senders are `embed` (the patch embedding), heads `1.0` (layer, head) and `mlp.1`; receivers a head's `1.0.q`, `1.0.k`,
`1.0.v`, `mlp.1`, and `final` (the final layer). Heads and receivers of cross-attention begin with `cross.`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import torch

from vdinterp.interventions import HookPair, Intervention
from vdinterp.models import HookedVideoDiT
from vdinterp.models.stream import Carry, held_in, places
from vdinterp.site import Site

PARTS = ("q", "k", "v")
EMBEDDED = Site(0, what="resid_pre")


class Graph:
    """The components of a model in the order in which they act, by name."""

    def __init__(self, model: HookedVideoDiT) -> None:
        self.model, self.n_heads = model, model.cfg.n_heads
        self.places = places(model)
        self.sublayers = self.places[:-1]

    @cached_property
    def senders(self) -> dict[str, tuple[int, int | None]]:
        """By name: which sublayer writes it (-1: the patch embedding), and the head, if it is one."""
        found: dict[str, tuple[int, int | None]] = {"embed": (-1, None)}
        for index, sub in enumerate(self.sublayers):
            if sub.sublayer == "mlp":
                found[sub.component] = (index, None)
            else:
                found |= {f"{sub.component}.{head}": (index, head) for head in range(self.n_heads)}
        return found

    @cached_property
    def receivers(self) -> dict[str, tuple[int, int | None, str]]:
        """By name: which sublayer reads (the number of sublayers: the final layer), the head, and q, k or v."""
        found: dict[str, tuple[int, int | None, str]] = {}
        for index, sub in enumerate(self.sublayers):
            if sub.sublayer == "mlp":
                found[sub.component] = (index, None, "pre")
            else:  # keys and values of cross-attention are text, which no sender writes
                own = product(range(self.n_heads), PARTS if sub.sublayer == "attn" else ("q",))
                found |= {f"{sub.component}.{head}.{part}": (index, head, part) for head, part in own}
        return found | {"final": (len(self.sublayers), None, "in")}

    def precedes(self, sender: str, receiver: str) -> bool:
        """Whether the receiver reads what the sender wrote."""
        return self.senders[sender][0] < self.receivers[receiver][0]

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """All (sender, receiver), receivers in order."""
        return [(s, r) for r in self.receivers for s in self.senders if self.precedes(s, r)]

    def check(self, names: Iterable[str], kind: str) -> list[str]:
        """Names that exist. Raises `ValueError` saying what there is, for others."""
        known = self.senders if kind == "sender" else self.receivers
        if not isinstance(names, Iterable):
            raise ValueError(f"{kind}s={names!r}: give names such as '1.0', or \"all\"")
        given = [names] if isinstance(names, str) else list(names)
        for name in given:
            if name not in known:
                some = ", ".join(list(known)[:4])
                raise ValueError(
                    f"no {kind} is called {name!r}; {self.model.cfg.model_name} has {some}, .., {list(known)[-1]}"
                )
        if not given:
            raise ValueError(f"an empty list of {kind}s")
        return given

    def sender_hook(self, sender: str) -> Site:
        """The activation that a sender is."""
        index, head = self.senders[sender]
        return EMBEDDED if index < 0 else self.sublayers[index].added if head is None else self.sublayers[index].at("z")

    def receiver_hook(self, receiver: str) -> Site:
        """The activation that is the first to depend on what a receiver reads alone."""
        index, _, part = self.receivers[receiver]
        return self.places[index].at(part)


class Stream:
    """The residual stream of one run, sublayer by sublayer: what would a reader see if some senders were others'?

    `live`: activations of the run by hook name, filled while it runs or from a cache; `other`: those that replace them.
    """

    def __init__(self, graph: Graph, live: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
        self.graph, self.live, self.other = graph, live, other
        self.carry = Carry(graph.model, held_in(live.__getitem__, graph.model))

    def changes(self, index: int, senders: Iterable[str]) -> torch.Tensor:
        """`[sender batch pos d_model]`: what changes in the stream if these senders (all of one sublayer) are the other
        run's."""
        if index < 0 or self.graph.places[index].sublayer == "mlp":
            name = EMBEDDED if index < 0 else self.graph.places[index].added
            own = self.live[name]
            return (self.other[name].to(own) - own).unsqueeze(0)
        place, heads = self.graph.places[index], [self.graph.senders[sender][1] for sender in senders]
        own = self.live[place.at("z")][:, :, heads]
        difference = self.other[place.at("z")].to(own)[:, :, heads] - own
        weight = self.graph.model.sublayer_at(place).W_O[heads]
        return self.carry.wrote(place, torch.einsum("b p h e, h e d -> h b p d", difference, weight))

    def seen(self, index: int, weights: torch.Tensor, senders: list[str]) -> torch.Tensor:
        """The streams that readers of sublayer `index` see, `[reader batch pos d_model]`.

        `weights` `[reader sender]` or `[reader sender batch]`: how far each sender before it is replaced, 0 to 1. All
        else is live; every normalisation that the stream is carried through is computed anew.
        """
        groups: dict[int, list[int]] = {}
        for column, sender in enumerate(senders):
            groups.setdefault(self.graph.senders[sender][0], []).append(column)
        x = self.live[EMBEDDED].expand(len(weights), -1, -1, -1)
        for at in range(-1, index):
            if at >= 0:
                place = self.graph.places[at]
                x = self.carry.after(place, x, self.live[place.added])
            if at in groups:
                changes = self.changes(at, [senders[column] for column in groups[at]])
                chosen = weights[:, groups[at]].to(x)
                pattern = "r s b, s b p d -> r b p d" if chosen.ndim == 3 else "r s, s b p d -> r b p d"
                x = x + torch.einsum(pattern, chosen, changes)
        return x

    def needed(self) -> list[Site]:
        """Hooks that `live` must hold, of a whole run."""
        own = [place.at(what) for place in self.graph.places for what in ("z", "mod.shift", "mod.scale", "mod.gate")]
        wanted = [EMBEDDED, *(place.added for place in self.graph.sublayers), *own]
        return [site for site in wanted if site in self.graph.model.hook_dict]


@dataclass(frozen=True)
class PatchEdges(Intervention):
    """Give some readers another run's version of some senders, and everyone else the live one.

    `edges`: by receiver, the senders (a list), or how far each is replaced (a mapping from name to weight, a number or
    `[batch]`; weights may carry gradients). `source`: the other run's activations (a cache, or a mapping with axes of
    size 1 that broadcast, or a run's name). `base`: activations of the run that is changed; if given, the pass can be
    resumed at the first receiver, else what comes before is noted as it is computed.

    One edge with everything before it untouched is path patching (Wang et al. 2023, arXiv 2211.00593); all edges of a
    sender together are activation patching.
    """

    RUNS: ClassVar[tuple[str, ...]] = ("source", "base")

    edges: Mapping[str, Any]
    source: Any
    base: Any = None

    def sites_of_run(self, model: Any) -> dict[str, list[str]]:
        graph = Graph(model)
        self._check(graph)
        wanted: dict[str, list[str]] = {}
        if isinstance(self.source, str):
            senders = {sender for given in self.edges.values() for sender in given}
            wanted[self.source] = sorted({graph.sender_hook(sender) for sender in senders})
        if isinstance(self.base, str):
            wanted[self.base] = sorted({*wanted.get(self.base, []), *Stream(graph, {}, {}).needed()})
        return wanted

    def _check(self, graph: Graph) -> None:
        if not self.edges:
            raise ValueError("PatchEdges needs at least one edge")
        graph.check(self.edges, "receiver")
        for receiver, given in self.edges.items():
            for sender in graph.check(given, "sender"):
                if not graph.precedes(sender, receiver):
                    raise ValueError(f"{sender} does not write before {receiver} reads: there is no such edge")
        if self.noise_levels is not None:
            raise ValueError("edges are replaced in all frames; noise_levels is not for PatchEdges")

    def hooks(self, model: Any) -> list[HookPair]:
        self.check_bound()
        graph = Graph(model)
        self._check(graph)
        for given in self.edges.values():
            for sender in given:
                if graph.sender_hook(sender) not in self.source:
                    raise KeyError(f"The source has no {graph.sender_hook(sender)!r}, which is sender {sender}.")
        live: Any = {} if self.base is None else self.base
        stream = Stream(graph, live, self.source)
        last = max(graph.receivers[receiver][0] for receiver in self.edges)
        pairs: list[HookPair] = []
        if self.base is None:
            pairs = [(name, self._note(live)) for name in stream.needed() if self._before(graph, name, last)]
        by_site: dict[Site, list[str]] = {}
        for receiver in self.edges:
            by_site.setdefault(graph.receiver_hook(receiver), []).append(receiver)
        return pairs + [(name, self._read(stream, graph, receivers)) for name, receivers in by_site.items()]

    @staticmethod
    def _before(graph: Graph, name: Site, last: int) -> bool:
        """Whether a hook fires before sublayer `last` reads (its modulation does)."""
        if name == EMBEDDED:
            return True
        index = graph.places.index(Site(name.layer, name.adds_of or name.sublayer))
        return index < last or (index == last and name.what in ("mod.shift", "mod.scale"))

    def _note(self, live: dict[str, torch.Tensor]) -> Callable[..., None]:
        def note(activation: torch.Tensor, hook: Any) -> None:
            live[hook.name] = activation

        return note

    def _read(self, stream: Stream, graph: Graph, receivers: list[str]) -> Callable[..., torch.Tensor | None]:
        index = graph.receivers[receivers[0]][0]
        senders = [s for s in graph.senders if any(s in self.edges[receiver] for receiver in receivers)]

        def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            if not self.is_active(hook):
                return None
            weights = self._weights(receivers, senders, activation)
            streams = stream.carry.entered(graph.places[index], stream.seen(index, weights, senders))
            module, out = graph.model.sublayer_at(graph.places[index]), activation
            for receiver, seen in zip(receivers, streams, strict=True):
                _, head, part = graph.receivers[receiver]
                if part == "in":
                    return seen
                if part == "pre":
                    return module.fc1(seen)
                weight, bias = getattr(module, f"W_{part.upper()}")[head], getattr(module, f"b_{part.upper()}")
                value = seen @ weight if bias is None else seen @ weight + bias[head]
                mine = torch.zeros(out.shape[2], dtype=torch.bool, device=out.device)
                mine[head] = True
                out = torch.where(mine[:, None], value.unsqueeze(2), out)
            return out

        return replace

    def _weights(self, receivers: list[str], senders: list[str], like: torch.Tensor) -> torch.Tensor:
        """`[reader sender]`, or `[reader sender batch]` where some weight differs by clip."""
        table = []
        for receiver in receivers:
            given = self.edges[receiver]
            each = given if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
            table.append([torch.as_tensor(each.get(sender, 0.0)).to(like) for sender in senders])
        if any(value.ndim for row in table for value in row):
            return torch.stack([torch.stack([value.expand(len(like)) for value in row]) for row in table])
        return torch.stack([torch.stack(row) for row in table])
