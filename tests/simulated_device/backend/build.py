"""Compile the simulated device, once for each torch, Python and state of the sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from filelock import FileLock  # torch needs it, too

SOURCES = Path(__file__).with_name("cpp")
TORCH = Path(torch.__file__).parent
MODULE = "_simdev"


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, which CXX can name; None if there is none."""
    candidates = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((path for path in map(shutil.which, candidates) if path), None)


def build() -> Path:
    """Return the folder of the compiled module; compile it unless a cache has it.

    Raises:
        RuntimeError: if there is no compiler, or it fails; the message has what it printed.
    """
    folder = _cache_folder()
    built = folder / f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not built.exists():
            _compile(built)
    return folder


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_of = hashlib.sha256(f"{torch.__version__} {sys.version} {TORCH}".encode())
    for source in sorted(SOURCES.iterdir()):
        made_of.update(source.read_bytes())
    return root / "pytest-bninvariants" / f"simdev-{made_of.hexdigest()[:16]}"


def _compile(built: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler was found: set CXX, or install g++")
    unfinished = built.with_suffix(".unfinished")
    includes = (
        TORCH / "include",
        TORCH / "include/torch/csrc/api/include",
        sysconfig.get_path("include"),
    )
    command = [
        *(compiler, "-O1", "-std=c++20", "-fPIC", "-shared", "-w"),
        *(f"-DTORCH_EXTENSION_NAME={MODULE}", "-DTORCH_API_INCLUDE_EXTENSION_H"),
        *(str(SOURCES / "module.cpp"), "-o", str(unfinished)),
        *(f"-I{folder}" for folder in includes),
        *(f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}"),
        *("-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    unfinished.replace(built)
