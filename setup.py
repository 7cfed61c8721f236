"""The packages of a wheel: those found in vdq/, and the configuration, which lies beside it in the repository.

Everything else stands in pyproject.toml, which cannot name both found packages and a mapped folder.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vdq", "vdq.*"]), "vdq.conf"],
    package_dir={"vdq.conf": "conf"},
    package_data={
        "vdq": ["**/*.cpp", "**/*.csv", "shapes/weights/*", "reports/gallery/page.*"],
        "vdq.conf": ["**/*.yaml"],
    },
)
