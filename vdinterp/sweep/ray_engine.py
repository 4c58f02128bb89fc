"""Sweeps on Ray: every actor holds the model, takes one unit at a time, and may die."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vdinterp.sweep.outcomes import Outcome, Unit
from vdinterp.sweep.worker import Worker

log = logging.getLogger("vdinterp")
TRIES = 4  # of one unit whose actor died


def run_on_ray(
    worker: Worker,
    units: Sequence[Unit],
    record: Callable[[Unit, list[Outcome]], None],
    *,
    workers: int | None = None,
    address: str | None = None,
) -> None:
    """Run units on actors and record each as it comes back. A unit whose actor dies runs again on another.

    `workers`: how many actors; default: one a GPU of the cluster, or one a CPU. `address` of a cluster; None starts
    one here, or joins the one this process is in. Raises ImportError without Ray, RuntimeError for a unit whose actors
    die again and again.
    """
    if not units:
        return
    try:
        import ray
        from ray.exceptions import RayActorError
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: pip install 'vdinterp[ray]'") from error
    mine = not ray.is_initialized()
    if mine:
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address=address) if address else ray.init(**options)
    try:
        resources = ray.cluster_resources()
        on_gpu = resources.get("GPU", 0) >= 1 and worker.denoiser.model.device.type == "cuda"
        n_actors = workers or int(resources.get("GPU" if on_gpu else "CPU", 1))
        n_actors = max(1, min(n_actors, len(units)))
        parts = ray.put((worker.denoiser, worker.cases, worker.judge, worker.wanted))
        actor = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0)(_Actor)
        threads = torch.get_num_threads() if not on_gpu else None

        def start() -> Any:
            return actor.remote(parts, threads)

        waiting = list(reversed([(unit, 0) for unit in units]))
        busy: dict[Any, tuple[Any, Unit, int]] = {}

        def give(handle: Any) -> None:
            if waiting:
                unit, tries = waiting.pop()
                busy[handle.run.remote(unit)] = handle, unit, tries

        for _ in range(n_actors):
            give(start())
        while busy:
            done, _ = ray.wait(list(busy), num_returns=1)
            handle, unit, tries = busy.pop(done[0])
            try:
                outcomes = ray.get(done[0])
            except RayActorError as error:
                if tries + 1 >= TRIES:
                    raise RuntimeError(f"{TRIES} Ray actors died over one unit of the sweep: {error}") from error
                log.warning("a Ray actor died; its unit runs again on a new one")
                waiting.append((unit, tries + 1))
                handle = start()
            else:
                record(unit, outcomes)
            give(handle)
    finally:
        if mine:
            ray.shutdown()


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, parts: tuple[Any, ...], threads: int | None) -> None:
        if threads is not None:  # as in the process that asked, so that both round alike
            torch.set_num_threads(threads)
        self.worker = Worker(*parts)

    def run(self, unit: Unit) -> list[Outcome]:
        return self.worker.run(unit)
