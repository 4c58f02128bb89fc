"""Clips of the game Crafter (PyPI `crafter`, MIT) with the game's own state as ground truth.

At `size=(72, 72)` a cell of the game is exactly 8x8 pixels and the view is 9 columns by 7 rows above the inventory,
so one latent token is one cell (63 a frame) and a step of the player scrolls the picture by exactly one token. Cells
are drawn from a small set of patches (material, creature, player), which lets generated cells be scored by their
nearest patch. Source of the environment: D. Hafner, "Benchmarking the Spectrum of Agent Capabilities", 2021.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import safe_open

from vdinterp import store
from vdinterp.checks.counts import check_count, check_indices, check_seed
from vdinterp.data.clips import Clips
from vdinterp.progress import bar

ROWS, COLS, CELL = 7, 9, 8
STEPS, STARTS = 40, 6
_MOVES, _PLACES = ("move_left", "move_right", "move_up", "move_down"), ("place_stone", "place_table", "place_plant")
ACTIONS = ("noop", *_MOVES, "do", *_PLACES)
MOVES = {1: (0, -1), 2: (0, 1), 3: (-1, 0), 4: (1, 0)}  # action -> (row, col) the player wants to go
TRAIN_WORLDS = tuple(range(200))
TEST_WORLDS = tuple(range(1000, 1024))
# Names of the semantic ids: 0 is outside the map, 1-12 materials, 13-18 things that stand on them.
_MATERIALS = "water grass stone path sand tree lava coal iron diamond table furnace"
_THINGS = "player cow zombie skeleton arrow plant"
SEMANTIC = ("outside", *_MATERIALS.split(), *_THINGS.split())

LABELS = ("semantic_map", "player_position")
"""What is known of these clips: material ids of the visible cells `[batch frame row col]`, see `SEMANTIC`; the
player's place `[batch frame (row, col)]` in world cells."""
_STICKY = 0.7  # chance that a move keeps the last move's direction
_START_MATERIALS = {"grass": 0.5, "path": 0.3, "sand": 0.2}


@dataclass(frozen=True)
class Trajectories:
    """Recorded play, frames stored losslessly as indices into the patches they consist of.

    `actions[:, t]` is the index into `ACTIONS` of the action that led to frame t (-1 at frame 0); `positions` are
    (row, col) on the 64x64 map; `semantic` holds the ids named in `SEMANTIC`; `world` is the seed of the world each
    trajectory was played in.
    """

    cells: UInt8[torch.Tensor, "clip frame row col"]
    patches: UInt8[torch.Tensor, "patch height width channel"]
    actions: Int[torch.Tensor, "clip frame"]
    positions: Int[torch.Tensor, "clip frame axis"]
    semantic: UInt8[torch.Tensor, "clip frame row col"]
    world: Int[torch.Tensor, " clip"]

    @property
    def displacement(self) -> Int[torch.Tensor, "clip frame axis"]:
        """How far the player went, (row, col): the cell seen at (r, c) was at (r, c) + displacement one frame
        before."""
        step = torch.zeros_like(self.positions)
        step[:, 1:] = self.positions[:, 1:] - self.positions[:, :-1]
        return step

    @property
    def implied(self) -> Int[torch.Tensor, "clip frame axis"]:
        """How far the action would have taken the player, (row, col), had nothing stood in the way."""
        table = torch.zeros(len(ACTIONS) + 1, 2, dtype=torch.long)
        for action, step in MOVES.items():
            table[action] = torch.tensor(step)
        return table[self.actions]

    @property
    def moved(self) -> Bool[torch.Tensor, "clip frame"]:
        return self.displacement.abs().sum(-1) > 0

    @property
    def blocked(self) -> Bool[torch.Tensor, "clip frame"]:
        """A move that something stood in the way of."""
        return (self.implied.abs().sum(-1) > 0) & ~self.moved

    def video(
        self, clips: torch.Tensor, frames: torch.Tensor
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Pixels in [0, 1] of `frames` [batch frame] of the trajectories `clips` [batch]."""
        return paint(self.cells[clips[:, None], frames], self.patches)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, integers as 16 bits."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        store.write_tensors(path, {k: v if v.dtype == torch.uint8 else v.to(torch.int16) for k, v in values.items()})

    @classmethod
    def load(cls, path: str | Path) -> Trajectories:
        with safe_open(str(path), "pt") as file:
            tensors = {f.name: file.get_tensor(f.name) for f in fields(cls)}
        # stored in as few bytes as they need
        return cls(**{name: value.long() if value.dtype != torch.uint8 else value for name, value in tensors.items()})


def vocabulary() -> UInt8[torch.Tensor, "patch height width channel"]:
    """Every patch that was seen in any world, most frequent first: what cells are scored against. Comes with the
    package."""
    from vdinterp.data.samples import CLIPS

    with safe_open(str(CLIPS / "crafter.safetensors"), "pt") as file:
        return file.get_tensor("patches")


def paint(
    cells: UInt8[torch.Tensor, "batch frame row col"], patches: UInt8[torch.Tensor, "patch height width channel"]
) -> Float[torch.Tensor, "batch frame channel _ _"]:
    """Puts each cell's patch in its place; pixels in [0, 1]."""
    tiles = patches[cells.long()]  # batch frame row col height width channel
    batch, frame, row, col, height, width, channel = tiles.shape
    tiles = tiles.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frame, channel, row * height, col * width)
    return tiles.float() / 255


def cut(video: torch.Tensor) -> torch.Tensor:
    """`[... channel height width]` frames into cells `[... row col channel*8*8]`."""
    *lead, channel, height, width = video.shape
    if height % CELL or width % CELL:
        raise ValueError(f"frames of {height}x{width} pixels do not divide into cells of {CELL}x{CELL}")
    cells = video.reshape(*lead, channel, height // CELL, CELL, width // CELL, CELL)
    n = len(lead)
    return cells.permute(*range(n), n + 1, n + 3, n, n + 2, n + 4).flatten(-3)


def nearest_patch(
    video: Float[torch.Tensor, "batch frame channel height width"],
    patches: UInt8[torch.Tensor, "patch _ _ channel"],
) -> Int[torch.Tensor, "batch frame row col"]:
    """Index of the patch nearest (least squared pixel difference) to each cell of `video` (pixels in [0, 1])."""
    cells = cut(video)
    vocabulary = patches.permute(0, 3, 1, 2).flatten(1).to(cells.dtype) / 255
    # |cell - patch|^2 without the cell's own square, which is the same for every patch
    return (vocabulary.square().sum(-1) - 2 * cells @ vocabulary.T).argmin(-1)


def play(world: int, *, starts: int = STARTS, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Plays `starts` trajectories of `steps` steps in one world; the same world always gives the same play.

    Sticky moves 80 %, do 9 %, place 7 %, noop 4 %; daylight is held and the inventory kept full, so that what a frame
    and an action lead to does not depend on anything the frame does not show (creatures excepted). The player never
    walks into lava.
    """
    env = _environment(world)
    rng = np.random.default_rng([world, 20])
    keep: dict[str, list] = {"frames": [], "actions": [], "positions": [], "semantic": []}
    for _ in range(starts):
        _teleport(env, rng)
        move, track = int(rng.integers(1, 5)), {key: [] for key in keep}
        for step in range(steps + 1):
            action = -1
            if step:
                before = env._player.pos.copy()
                action = _act(env, move, rng)
                env.step(_crafter_action(ACTIONS[action]))
                _refill(env)
                if action in MOVES:  # turn away from what is in the way
                    move = action if (env._player.pos != before).any() else int(rng.integers(1, 5))
            track["frames"].append(env.render()[: ROWS * CELL])
            track["actions"].append(action)
            track["positions"].append(env._player.pos[::-1].copy())  # crafter counts (col, row)
            track["semantic"].append(_semantic_crop(env))
        for key, values in track.items():
            keep[key].append(np.stack(values) if key != "actions" else np.array(values))
    return {key: np.stack(values) for key, values in keep.items()}


def collect(worlds: tuple[int, ...], path: str | Path | None = None, *, progress: bool = True) -> Trajectories:
    """Plays every world of `worlds`; with `path`, reads what is stored there, or stores what was played."""
    if path is not None and Path(path).exists():
        return Trajectories.load(path)
    index: dict[bytes, int] = {}
    parts: dict[str, list] = {"cells": [], "actions": [], "positions": [], "semantic": [], "world": []}
    for world in bar(worlds, desc="crafter worlds", show=progress):
        played = play(world)
        frames = played.pop("frames")
        cells = frames.reshape(*frames.shape[:2], ROWS, CELL, COLS, CELL, 3).swapaxes(3, 4)
        flat = np.ascontiguousarray(cells).reshape(-1, CELL * CELL * 3)
        ids = np.array([index.setdefault(cell.tobytes(), len(index)) for cell in flat])
        if len(index) > 256:
            raise RuntimeError("more than 256 distinct cell patches: this is not the crafter view that was expected")
        parts["cells"].append(ids.astype(np.uint8).reshape(*frames.shape[:2], ROWS, COLS))
        for key, value in played.items():
            parts[key].append(value)
        parts["world"].append(np.full(len(frames), world))
    patches = np.stack([np.frombuffer(key, np.uint8).reshape(CELL, CELL, 3) for key in index])
    joined = {key: torch.from_numpy(np.concatenate(value)) for key, value in parts.items()}
    result = Trajectories(patches=torch.from_numpy(patches), **joined)
    if path is not None:
        result.save(path)
    return result


@functools.lru_cache(maxsize=64)
def _played(world: int) -> Trajectories:
    return collect((world,), progress=False)


def _crafter() -> Any:
    try:
        import crafter
    except ImportError as error:
        raise ImportError("crafter clips need the game: pip install 'vdinterp[crafter]'") from error
    return crafter


@functools.lru_cache(maxsize=32)
def _crafter_action(name: str) -> int:
    return _crafter().constants.actions.index(name)


def _environment(world: int) -> Any:
    env = _crafter().Env(size=(72, 72), length=10**9, seed=world)
    light = env._world
    env._update_time = lambda: setattr(light, "daylight", 1.0)
    env._local_view._light = lambda canvas, daylight: canvas
    # The game keeps creatures in sets, whose order is that of memory addresses; sorting makes play repeatable.
    balance = env._balance_chunk
    env._balance_chunk = lambda chunk, objs: balance(chunk, sorted(objs, key=lambda thing: tuple(thing.pos)))
    env.reset()
    _refill(env)
    return env


def _refill(env: Any) -> None:
    for item in env._player.inventory:
        env._player.inventory[item] = 9


def _teleport(env: Any, rng: np.random.Generator) -> None:
    world = env._world
    free = {}
    for material in _START_MATERIALS:
        mask = (world._mat_map == world._mat_ids[material]) & (world._obj_map == 0)
        mask[:4] = mask[-4:] = False
        mask[:, :4] = mask[:, -4:] = False
        if mask.any():
            free[material] = np.argwhere(mask)
    names = list(free)
    weights = np.array([_START_MATERIALS[name] for name in names])
    places = free[names[rng.choice(len(names), p=weights / weights.sum())]]
    world.move(env._player, places[rng.integers(len(places))])


def _act(env: Any, move: int, rng: np.random.Generator) -> int:
    """Next action, given the move to stick to."""
    kind = rng.random()
    if kind < 0.80:
        move = move if rng.random() < _STICKY else int(rng.integers(1, 5))
        for _ in range(8):  # never into lava
            row, col = MOVES[move]
            if env._world[env._player.pos + np.array([col, row])][0] != "lava":
                return move
            move = int(rng.integers(1, 5))
        return ACTIONS.index("noop")
    if kind < 0.89:
        return ACTIONS.index("do")
    if kind < 0.96:
        return ACTIONS.index(("place_stone", "place_table", "place_plant")[rng.integers(3)])
    return ACTIONS.index("noop")


def _semantic_crop(env: Any) -> np.ndarray:
    padded = np.pad(env._sem_view(), ((COLS // 2,) * 2, (ROWS // 2,) * 2))
    col, row = env._player.pos
    return padded[col : col + COLS, row : row + ROWS].T.astype(np.uint8)


def make_crafter_clips(
    n: int, seed: int = 0, *, n_frames: int = 8, worlds: tuple[int, ...] = TEST_WORLDS, last: str = "any"
) -> Clips:
    """`n` clips of `n_frames` frames, 3x56x72, cut at random from play in `worlds` (default: never trained on).

    `last` asks for clips whose last step was "moved", "blocked" (a move that something stood in the way of), "still"
    (no move), or "any". Worlds are generated as they are needed, about two seconds each, and kept in memory. Clip i
    depends on `(seed, i)` and the options. ValueError for options out of range, ImportError without the game.
    """
    n, seed = check_count("n", n), check_seed(seed)
    n_frames = check_count("n_frames", n_frames, 2, STEPS + 1, "a trajectory has no more")
    if not isinstance(worlds, (tuple, list, range)) or not worlds:
        raise ValueError(
            f"worlds is {worlds!r}: give the seeds of at least one world, e.g. vdinterp.data.crafter.TEST_WORLDS"
        )
    check_indices("worlds", worlds, low=0)
    if last not in ("any", "moved", "blocked", "still"):
        raise ValueError(f"last must be 'any', 'moved', 'blocked' or 'still', got {last!r}")
    picked = []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 7])
        while True:
            played = _played(int(worlds[rng.integers(len(worlds))]))
            places = ends(played, last)
            places = places[places[:, 1] >= n_frames - 1]
            if len(places):
                break
        clip, end = places[rng.integers(len(places))].tolist()
        picked.append(as_clips(played, torch.tensor([clip]), torch.tensor([end - n_frames + 1]), n_frames))
    return Clips(
        kind="crafter",
        video=torch.cat([clip.pixels for clip in picked]),
        action=torch.cat([clip.action for clip in picked if clip.action is not None]),
        labels={name: torch.cat([clip.labels[name] for clip in picked]) for name in LABELS},
    )


def ends(played: Trajectories, last: str) -> Int[torch.Tensor, "place two"]:
    """All (clip, frame) whose step was "moved", "blocked", "still" or "any"."""
    wanted = {"moved": played.moved, "blocked": played.blocked, "still": ~played.moved & ~played.blocked}
    mask = wanted.get(last, torch.ones_like(played.moved)).clone()
    mask[:, 0] = False
    return mask.nonzero()


def as_clips(played: Trajectories, clip: torch.Tensor, first: torch.Tensor, n_frames: int) -> Clips:
    """`Clips` of `n_frames` frames of the trajectories `clip` [batch] from the frames `first` [batch] on."""
    frames = first[:, None] + torch.arange(n_frames)
    rows = clip[:, None]
    return Clips(
        kind="crafter",
        video=played.video(clip, frames),
        action=one_hot(played.actions[rows, frames], drop_first=True),
        labels={
            "semantic_map": played.semantic[rows, frames].long(),
            "player_position": played.positions[rows, frames],
        },
    )


def one_hot(
    actions: Int[torch.Tensor, "batch frame"], drop_first: bool = False
) -> Float[torch.Tensor, "batch frame _"]:
    """Actions as the model takes them: one-hot over `ACTIONS`, all zero for -1 (and, if asked, for the first frame)."""
    hot = torch.nn.functional.one_hot(actions + 1, len(ACTIONS) + 1)[..., 1:].float()
    if drop_first:
        hot[:, 0] = 0
    return hot


def displacement(clips: Clips) -> Int[torch.Tensor, "batch frame 2"]:
    """How far the player really went to reach each frame, (row, col): the picture scrolled by as much. 0 at frame 0."""
    step = torch.zeros_like(clips.labels["player_position"])
    step[:, 1:] = clips.labels["player_position"].diff(dim=1)
    return step


def implied(clips: Clips) -> Int[torch.Tensor, "batch frame 2"]:
    """How far the action would have taken the player, (row, col), had nothing stood in the way."""
    assert clips.action is not None
    table = torch.zeros(len(ACTIONS), 2)
    for action, step in MOVES.items():
        table[action] = torch.tensor(step)
    return (clips.action @ table).long()


def moved(clips: Clips) -> Bool[torch.Tensor, "batch frame"]:
    """Frames that the player reached by a step, so that the picture scrolled."""
    return displacement(clips).abs().sum(-1) > 0


def blocked(clips: Clips) -> Bool[torch.Tensor, "batch frame"]:
    """Frames whose action was a move that something stood in the way of."""
    return (implied(clips).abs().sum(-1) > 0) & ~moved(clips)
