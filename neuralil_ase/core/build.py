"""Build of the optional pair kernel, named in pyproject.toml; setuptools runs it, the package never does.

Without a C++ compiler, or without JAX at build time, the package installs all the same and runs in pure JAX.
"""

import platform
import sys
from copy import copy
from typing import Any

from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-g0"]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


class BuildPairKernel(build_ext):
    """One library for every instruction set worth telling apart; the package picks one when it runs."""

    def finalize_options(self) -> None:
        """Drop what cannot be built here."""
        super().finalize_options()
        self.parallel = True  # all instruction sets at once
        can_build = _jax_headers() is not None and sys.platform != "win32"
        extensions: list[Any] = getattr(self, "extensions", None) or []
        self.extensions = [
            extension
            for extension in extensions
            if can_build and (IS_X86 or _level(extension) == 1)
        ]

    def build_extension(self, extension: Any) -> None:
        """Compile for one level of the x86-64 instruction set (1: whatever the processor)."""
        level = _level(extension)
        extension.extra_compile_args = [*FLAGS, "-isystem", _jax_headers()]
        if level > 1:
            extension.extra_compile_args.append(f"-march=x86-64-v{level}")
        # Object files in a folder of their own: all levels compile the same sources at the same time.
        alone = copy(self)
        alone.build_temp = f"{self.build_temp}-v{level}"
        super(BuildPairKernel, alone).build_extension(extension)


def _level(extension: Any) -> int:
    return int(extension.name.rsplit("_v", 1)[1])


def _jax_headers() -> str | None:
    try:
        from jax.ffi import include_dir
    except ImportError:
        return None
    return include_dir()
