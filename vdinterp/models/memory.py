"""How much memory there is, and how to say it."""

from __future__ import annotations

import torch


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil  # comes with accelerate

    return psutil.virtual_memory().available


def readable(n_bytes: int | float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def check_fits(n_bytes: int, device: torch.device, what: str, hint: str) -> None:
    """Raise `MemoryError` with the byte count when something would take more than half of the free memory."""
    free = available_memory(device)
    if n_bytes > free / 2:
        raise MemoryError(f"{what} would take {readable(n_bytes)}, {readable(free)} are free. {hint}")
