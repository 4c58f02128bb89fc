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
    from huggingface_hub import constants, hf_hub_download

    online = not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)
    what = f"asking {constants.ENDPOINT} for it" if online else "no network, so a copy from earlier is looked for"
    logger.warning("%s is nothing on this disk: %s", name, what)
    found = []
    for file in files:
        try:
            found.append(Path(hf_hub_download(name, file, local_files_only=not online)))
        except (OSError, ValueError) as error:  # offline, no such repository or file, no possible name
            reason = str(error).strip().splitlines()[0] if online and str(error).strip() else "no network and no copy"
            raise FileNotFoundError(
                f"{name}/{file} could not be fetched from the Hugging Face hub ({type(error).__name__}: {reason}). "
                f"{name!r} is no local path either. Without a network these work: the bundled models "
                "(vdinterp.list_models()), or a downloaded folder or file"
            ) from error
    return found


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
