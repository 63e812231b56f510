"""What a figure depends on: machine, Python, packages, commit. Written beside every figure."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def facts(*packages: str) -> dict[str, Any]:
    """The machine, how busy it is, the versions of Python and of `packages`, and the commit."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "commit": _git("rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dirty": bool(_git("status", "--porcelain")),
        "load": os.getloadavg()[0],
    }


def one_line(known: dict[str, Any]) -> str:
    """The facts as one line for people."""
    packages = "".join(f", {name} {number}" for name, number in known["packages"].items())
    return (
        f"{known['cpu']}, {known['cores']} cores, {known['kernel']}, "
        f"Python {known['python']}{packages}, commit {commit(known)}"
    )


def commit(known: dict[str, Any]) -> str:
    """The commit, short, and whether the files differed from it."""
    return (known["commit"] or "unknown")[:12] + ("+changes" if known["dirty"] else "")


def cores() -> int:
    """Number of CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def version(package: str) -> str | None:
    """Version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
