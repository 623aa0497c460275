"""How much memory this process holds, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def process_memory(field: str) -> int | None:
    """Return bytes of `field`, VmRSS (held now) or VmHWM (the peak); None without /proc.

    Not getrusage's peak: Linux starts that at what the parent held when it forked.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
    return 1024 * int(fields[field].split()[0])
