"""One resumable training loop: AdamW, warmup, linear decay, an average of the weights, checkpoints along the way.

A run that was killed and started again gives bitwise the weights of one that was not (same machine, same number of
threads), because nothing random lives in the loop: ``loss_at(step)`` draws everything from :func:`step_generator`.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

from vdinterp import store
from vdinterp.gradient_state import check_gradients, keep_grad_mode

log = logging.getLogger("vdinterp")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter


def step_generator(seed: int, step: int, stream: str = "train") -> torch.Generator:
    """A CPU generator that depends on ``(seed, step, stream)`` only: all randomness of training step ``step``."""
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must be at least 0, got seed={seed}, step={step}")
    words = torch.tensor([seed, step, zlib.crc32(stream.encode())], dtype=torch.int64).numpy().tobytes()
    # two checksums over the same words give 64 well-mixed bits, so that neighbouring steps do not share a stream
    mixed = (zlib.crc32(words) << 32) | zlib.crc32(words[::-1], 0x9E3779B9)
    return torch.Generator().manual_seed(mixed & (2**63 - 1))


def learning_rate(step: int, *, steps: int, lr: float, warmup: int, decay_from: float) -> float:
    """Learning rate of update ``step`` (0-based): linear warmup, constant, linear to 0 from ``decay_from * steps``."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = min(1.0, (steps - step) / (steps * (1 - decay_from))) if decay_from < 1 else 1.0
    return lr * min(rise, fall)


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    """Where :func:`fit` keeps the averaged weights of ``step``."""
    return Path(out_dir) / "checkpoints" / f"step-{step:05d}.safetensors"


def kept_at(out_dir: str | Path, step: int) -> dict[str, torch.Tensor]:
    """The checkpoint of a step that `fit` was told to keep, in half precision, as it is bundled."""
    return {key: value.half() for key, value in load_file(checkpoint_path(out_dir, step)).items()}


class _State:
    """Weights, their moving average, Adam's moments and the losses so far, as one safetensors file and one JSON.

    The JSON is written last and names the file it belongs to: it is the moment at which a save counts.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.AdamW, out_dir: Path, settings: dict) -> None:
        self.module, self.optimizer, self.out_dir, self.settings = module, optimizer, out_dir, settings
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.losses: list[float] = []
        self.step = 0

    def update_average(self, decay: float) -> None:
        # the average starts from the random weights: a smaller decay while there are few steps to average over
        decay = min(decay, (1 + self.step) / (10 + self.step))
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                if name in parameters:
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    def save(self) -> None:
        tensors = {f"weights.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for parameter, moments in self.optimizer.state.items():
            tensors |= {f"{key}.{self.names[id(parameter)]}": moments[key] for key in _MOMENTS}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        path = self.out_dir / f"state-{self.step:06d}.safetensors"
        store.write_tensors(path, tensors)
        record = {"step": self.step, "file": path.name, "settings": self.settings}
        store.write(self.out_dir / "state.json", json.dumps(record, indent=1))
        for old in self.out_dir.glob("state-*.safetensors*"):
            if old != path:
                old.unlink()

    def load(self) -> bool:
        """Continue from ``state.json`` if there is one. ValueError when it belongs to another run or is damaged."""
        file = self.out_dir / "state.json"
        if not file.exists():
            return False
        try:
            record = json.loads(file.read_text())
            tensors = load_file(self.out_dir / record["file"])
            self.step = int(record["step"])
            recorded = dict(record["settings"])
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise ValueError(
                f"the training state in {self.out_dir} cannot be read ({error}); use an empty directory or resume=False"
            ) from error
        changed = [f"{k}: {recorded.get(k)} -> {v}" for k, v in self.settings.items() if recorded.get(k) != v]
        if changed:
            raise ValueError(
                f"{self.out_dir} holds a run with other settings ({', '.join(changed)}); "
                "use an empty directory or resume=False"
            )
        weights = {
            name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")
        }
        expected = {name: tuple(value.shape) for name, value in self.module.state_dict().items()}
        if {name: tuple(value.shape) for name, value in weights.items()} != expected:
            raise ValueError(
                f"{self.out_dir} holds a run of another architecture; use an empty directory or resume=False"
            )
        self.module.load_state_dict(weights)
        with torch.no_grad():
            for name, value in self.average.items():
                value.copy_(tensors[f"average.{name}"])
        for name, parameter in self.module.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}
        self.losses = tensors["losses"].tolist()
        return True


def fit(
    module: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    *,
    steps: int,
    lr: float,
    warmup: int = 200,
    decay_from: float = 0.75,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.02,
    ema: float = 0.999,
    grad_clip: float = 1.0,
    out_dir: str | Path,
    save_every: int = 200,
    keep: Iterable[int] = (),
    seed: int = 0,
    desc: str = "",
    resume: bool = True,
) -> nn.Module:
    """Train ``module`` in place for ``steps`` updates and return it with its averaged (EMA) weights, in eval mode.

    ``loss_at(step)`` returns the scalar loss of update ``step`` (0-based), with every random draw taken from
    ``step_generator(seed, step)``; the loop itself is deterministic. Calling it again with the same settings continues
    where the last save was; a finished run returns at once. Buffers (batch-norm statistics) are taken as they are, not
    averaged. Under ``out_dir``:

    - ``state.json`` and ``state-*.safetensors``, saved every ``save_every`` steps, replaced atomically;
    - ``checkpoints/step-NNNNN.safetensors``: averaged weights after NNNNN updates, for each of ``keep`` (0: as given);
    - ``final.safetensors`` (averaged weights) and ``losses.csv`` at the end.

    Raises ValueError for settings that make no sense, or when ``out_dir`` holds a run with other settings
    (``resume=False`` starts over), and FloatingPointError when the loss is not finite.
    """
    check_gradients("training")
    keep = sorted(set(keep))
    if steps < 1 or warmup < 0 or save_every < 1 or lr <= 0 or not 0 <= decay_from <= 1 or not 0 <= ema < 1:
        raise ValueError(
            "need steps, save_every >= 1, warmup >= 0, lr > 0, 0 <= decay_from <= 1, 0 <= ema < 1; "
            f"got {steps=} {save_every=} {warmup=} {lr=} {decay_from=} {ema=}"
        )
    if keep and (keep[0] < 0 or keep[-1] > steps):
        raise ValueError(f"keep must lie in 0..{steps} (the number of steps), got {keep}")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the module has no trainable parameters")
    out_dir = Path(out_dir)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    settings = {
        "steps": steps,
        "lr": lr,
        "warmup": warmup,
        "decay_from": decay_from,
        "betas": list(betas),
        "weight_decay": weight_decay,
    }
    settings |= {"ema": ema, "grad_clip": grad_clip, "seed": seed}
    state = _State(module, optimizer, out_dir, settings)
    if resume and state.load():
        log.info("continuing %s at step %d of %d", desc or out_dir, state.step, steps)
    elif not resume:
        for old in [out_dir / "state.json", *out_dir.glob("state-*.safetensors*")]:
            old.unlink(missing_ok=True)

    def keep_checkpoint() -> None:
        if state.step in keep:
            store.write_tensors(checkpoint_path(out_dir, state.step), state.average)

    keep_checkpoint()
    try:
        module.train()
        with (
            keep_grad_mode(),
            torch.enable_grad(),
            tqdm(total=steps, initial=state.step, desc=desc or None, unit="step", mininterval=1.0) as bar,
        ):
            while state.step < steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(state.step, steps=steps, lr=lr, warmup=warmup, decay_from=decay_from)
                optimizer.zero_grad(set_to_none=True)
                loss = loss_at(state.step)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss became {value} at step {state.step}; lower lr (now {lr}) or grad_clip "
                        f"(now {grad_clip})"
                    )
                loss.backward()
                if grad_clip:
                    torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
                optimizer.step()
                state.step += 1
                state.losses.append(value)
                state.update_average(ema)
                keep_checkpoint()
                if state.step % save_every == 0 or state.step == steps:
                    state.save()
                bar.update()
                if state.step % 20 == 0:
                    bar.set_postfix(loss=f"{sum(state.losses[-50:]) / len(state.losses[-50:]):.4f}", refresh=False)
    finally:
        module.eval()
    module.load_state_dict(state.average)
    store.write_tensors(out_dir / "final.safetensors", state.average)
    lines = ["step,loss", *(f"{i},{value:.6g}" for i, value in enumerate(state.losses))]
    store.write(out_dir / "losses.csv", "\n".join(lines) + "\n")
    return module
