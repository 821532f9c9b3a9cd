"""Build of the compiled core, named in pyproject.toml; setuptools runs it, the package never does.

One shared library holds code for several instruction sets and chooses one when it runs. It is loaded through ctypes and
not imported, so that one wheel serves every version of Python. Without a C++ compiler, the package is installed without
it and computes with JAX.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("neuralil_ase/core/src")
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-g0"]
FLAGS += ["-fvisibility=hidden", "-pthread"]
X86_LEVELS = (1, 3, 4)
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


class BuildCore(build_ext):
    """Compiles the core into a library without the name of a Python version."""

    def finalize_options(self) -> None:
        """Take all sources, or none where they cannot be built."""
        super().finalize_options()
        if sys.platform == "win32":
            self.extensions = []
        for extension in self.extensions or ():
            extension.sources = sorted(map(str, SOURCES.glob("*.cpp")))
            extension.depends = sorted(map(str, SOURCES.parent.rglob("*.h")))

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library lies, from the root of the package."""
        return str(Path(*fullname.split(".")).with_suffix(SUFFIX))

    def build_extension(self, extension: Any) -> None:
        """Compile all sources, those of an instruction set once for each, and link them."""
        library = Path(self.get_ext_fullpath(extension.name))
        headers = [Path(name) for name in extension.depends]
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            found = executor.map(lambda job: self._compile(headers, *job), jobs(extension.sources))
            objects = list(found)
        library.parent.mkdir(parents=True, exist_ok=True)
        links = []
        if sys.platform == "linux":  # nodelete: its threads may be asleep
            links = ["-Wl,-z,nodelete", f"-Wl,--version-script={SOURCES / 'exports.map'}"]
        self.compiler.link_shared_object(
            objects, str(library), target_lang="c++", extra_postargs=["-pthread", *links]
        )
        if find_spec("lammps") is not None:
            self._add_plugin(library)

    def _add_plugin(self, library: Path) -> None:
        """``pair_style neuralil`` for the LAMMPS of this environment (``--no-build-isolation``)."""
        host = _lammps_host()
        try:
            folder = host.own_folder(library.parents[1] / "hosts" / "lammps")
            host.compile_into(folder, host.lammps_folder(), library)
        except host.PluginError as error:
            self.warn(f"no plugin for LAMMPS: {error}")

    def _compile(self, headers: list[Path], source: str, folder: str, flags: list[str]) -> str:
        """One object, unless there is one that is newer than what it is made from."""
        output = str(Path(self.build_temp, folder))
        (found,) = self.compiler.object_filenames([source], output_dir=output)
        if self.force or not is_newer(Path(found), [Path(source), Path(__file__), *headers]):
            self.compiler.compile([source], output_dir=output, extra_postargs=[*FLAGS, *flags])
        return found


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and any Python 3; for any platform where the core could not be built."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python version, ABI and platform."""
        build = self.get_finalized_command("build_ext")
        has_core = any(Path(name).exists() for name in build.get_outputs())
        return "py3", "none", super().get_tag()[2] if has_core else "any"


def _lammps_host() -> Any:
    """The module that compiles the plugin, from its file: while the package is built, it cannot be imported."""
    path = Path(__file__).resolve().parents[1] / "hosts" / "lammps" / "__init__.py"
    spec = spec_from_file_location("neuralil_lammps", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jobs(sources: list[str]) -> list[tuple[str, str, list[str]]]:
    """What to compile: source, folder of the object, flags; the longest first."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {f"v{k}": [f"-march=x86-64-v{k}" if k > 1 else "-march=x86-64"] for k in X86_LEVELS}
    if not is_x86:
        sets = {"generic": []}
    instance = [source for source in sources if source.endswith("instance.cpp")]
    found = [
        (source, f"{isa}_{real}", [*flags, f"-DNEURALIL_ISA={isa}", f"-DNEURALIL_REAL={real}"])
        for source in instance
        for isa, flags in sets.items()
        for real in ("double", "float")
    ]
    levels = ["-DNEURALIL_X86_LEVELS"] if is_x86 else []
    return found + [(source, "all", levels) for source in sources if source not in instance]


def is_newer(product: Path, files: list[Path]) -> bool:
    """Whether a file exists and is newer than what it is made from."""
    if not product.exists():
        return False
    return all(path.stat().st_mtime < product.stat().st_mtime for path in files)
