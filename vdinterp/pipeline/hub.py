"""Files from the Hugging Face hub: only where a name asks for them, and without a wait where there is no network."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 2.0  # seconds to wait for a connection

logger = logging.getLogger(__name__)


def download(name: str, files: Sequence[str]) -> list[Path]:
    """Files of the hub repository `name`; copies from the hub's cache where the hub cannot be reached.

    Raises:
        FileNotFoundError: no network and no copy, no such repository, or no such file.
    """
    from huggingface_hub import constants

    online = not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)
    what = f"asking {constants.ENDPOINT} for it" if online else "no network, so a copy from earlier is looked for"
    logger.warning("%s is nothing on this disk: %s", name, what)
    return [_fetched(name, file) if online else _kept(name, file) for file in files]


def _fetched(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError) as error:  # the network went away, no such repository or file, no possible name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
        raise _missing(name, file, f"{type(error).__name__}: {reason}") from error


def _kept(name: str, file: str) -> Path:
    """From the cache without the hub's client, which asks the network for its own ends."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError as error:
        raise _missing(name, file, str(error)) from error
    if not isinstance(found, str):
        raise _missing(name, file, "no network, and no copy from earlier")
    return Path(found)


def _missing(name: str, file: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}/{file} could not be fetched from the Hugging Face hub ({reason}). {name!r} is no local path either. "
        "Without a network these work: the bundled models (vdinterp.list_models()), or a downloaded folder or file"
    )


def reachable(url: str) -> bool:
    """Whether a connection to a host, or to the proxy in between, is accepted within `PATIENCE`."""
    proxies = {} if proxy_bypass(urlsplit(url).hostname or "") else getproxies()
    target = urlsplit(proxies.get(urlsplit(url).scheme) or proxies.get("all") or url)
    port = target.port or {"http": 80, "socks5": 1080}.get(target.scheme, 443)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=PATIENCE).close()
        except OSError:
            return
        answered.set()

    # In a thread of its own, because no timeout bounds how long looking up a name takes.
    asking = threading.Thread(target=connect, daemon=True)
    asking.start()
    asking.join(PATIENCE + 0.5)
    return answered.is_set()
