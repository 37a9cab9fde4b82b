"""Everything stands in pyproject.toml, but for this: a wheel with libtokenskip.so in it is of one platform, for any
Python 3."""

import glob
import os

from setuptools import setup
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

HAS_LIBRARY = bool(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenskip", "libtokenskip.so*")))


class OfOnePlatform(Distribution):
    def has_ext_modules(self):
        return HAS_LIBRARY


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if HAS_LIBRARY else (python, abi, platform)


setup(distclass=OfOnePlatform, cmdclass={"bdist_wheel": Wheel})
