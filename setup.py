"""Builds the engine's kernels into the package where there is a C compiler; pyproject.toml says everything else."""

import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "workflow/scripts"))
from seam.engine.compiler import build_all, find_compiler
from seam.engine.errors import EngineError

FOLDER = "seam/engine/built"


class BuildWithKernels(build_py):
    """Puts the compiled kernels beside the Python files."""

    def run(self) -> None:
        """Build the package, then its kernels. An editable installation compiles them at their first use."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build from other sources
        try:
            build_all(folder)
        except EngineError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.warn(
                f"{error} The package is built without the kernels of seam.engine: they are compiled at their first "
                "use if there is a compiler by then, and else ONNX Runtime runs the models."
            )


class PackageWithKernels(Distribution):
    """Says that the package holds compiled code, so that it is installed where libraries go."""

    def has_ext_modules(self) -> bool:
        """Return whether the kernels can be compiled."""
        try:
            return bool(find_compiler())
        except EngineError:
            return False


class WheelOfKernels(bdist_wheel):
    """Names the wheel after the machine that its kernels are for, and no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the interpreter, the ABI and the platform."""
        platform = super().get_tag()[2]
        built = Path(self.get_finalized_command("build_py").build_lib) / FOLDER
        return "py3", "none", platform if built.is_dir() else "any"


setup(distclass=PackageWithKernels, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfKernels})
