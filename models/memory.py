"""How much memory processes hold, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def process_memory(field: str, pid: int | None = None) -> int | None:
    """Return bytes of `field`, VmRSS (held now) or VmHWM (the peak); None without /proc.

    `pid`: another process than this one; None for one that has ended.

    Not getrusage's peak: Linux starts that at what the parent held when it forked.
    """
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text("utf-8")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return 1024 * int(fields[field].split()[0]) if field in fields else None


def available_memory() -> int | None:
    """Return bytes that a process could still take without swapping; None without /proc."""
    facts = Path("/proc/meminfo")
    if not facts.is_file():
        return None
    fields = dict(line.split(":", 1) for line in facts.read_text("utf-8").splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])
