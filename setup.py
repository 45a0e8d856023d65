"""Build the package: all metadata come from `settings.ini`."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

REPORT_FILES = ["report_page.html", "report_page.css", "report_page.js", "report_schema.json"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["nercrf", "nercrf.*"]),
    package_data={"nercrf": ["py.typed"], "nercrf.evaluation": REPORT_FILES},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        "fast": settings["fast_requirements"].split(),
        "lora": settings["lora_requirements"].split(),
        "parquet": settings["parquet_requirements"].split(),
        "ray": settings["ray_requirements"].split(),
        "notebooks": settings["notebooks_requirements"].split(),
        "benchmarks": settings["benchmarks_requirements"].split(),
        "dev": settings["dev_requirements"].split(),
    },
    entry_points={"console_scripts": [settings["console_scripts"]]},
)
