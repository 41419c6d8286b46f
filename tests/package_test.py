"""The package: built distributions work on their own, and its files agree with one another."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ojax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

USE = """
import sys, jax.numpy as jnp, ojax
assert "experiments" not in sys.modules and ojax.__file__.startswith(sys.prefix), ojax.__file__
images = ojax.datasets.load().train.inputs[:4]
tx, params = ojax.oja_sgd(1e-3, 1e-3), {"kernel": jnp.eye(784, 2)}
activity = {"kernel": ojax.Activity(images, images @ params["kernel"])}
updates, _ = tx.update(params, tx.init(params), params, activity=activity)
print(ojax.__version__, updates["kernel"].shape)
"""

# Oja's rule without Flax and without JAX's private modules.
ALONE = """
import sys
sys.modules |= dict.fromkeys(("flax", "jax.extend", "orbax", "orbax.checkpoint", "psutil"))
import jax.numpy as jnp, ojax, optax
params = {"kernel": jnp.ones((3, 2))}
tx = optax.chain(optax.sgd(1e-3), ojax.oja(1e-4))
activity = {"kernel": ojax.Activity(jnp.ones(3), jnp.ones(2))}
updates, _ = tx.update(params, tx.init(params), params, activity=activity)
assert set(ojax.__all__) <= set(dir(ojax)) and not hasattr(ojax, "no_such_name")
print(sorted(name for name in sys.modules if name.startswith("ojax.") and name.count(".") == 1))
"""


def call(*command, **options):
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_rules_need_jax_and_optax_alone():
    loaded = call(sys.executable, "-c", ALONE, cwd=ROOT)
    assert "ojax.plasticity" in loaded and "ojax.modules" not in loaded and "ojax.online" not in loaded


def test_all_public_names_are_there_when_they_are_used():
    assert all(getattr(ojax, name) is not None for name in ojax.__all__)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Builds the source distribution, and a wheel from it, without network."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=unpacked)
    return folder


def test_the_wheel_works_in_an_empty_environment(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"ojax_plasticity-{ojax.__version__}-py3-none-any.whl"
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The other packages come from this environment, without network. Its own editable ojax stays hidden, as .pth files of a
    # folder on PYTHONPATH are not read.
    environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    assert call(python, "-c", USE, cwd=tmp_path, env=environment) == f"{ojax.__version__} (784, 2)\n"


def test_the_wheel_holds_the_library_and_its_types(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ojax").rglob("*.py")}
    assert modules | {"ojax/py.typed", "ojax/data/fashion_mnist.npz", "ojax/data/LICENSE"} <= names
    assert {name.partition("/")[0] for name in names} == {"ojax", f"ojax_plasticity-{ojax.__version__}.dist-info"}


def test_the_source_distribution_can_be_worked_on(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["pyproject.toml", ".constraints.txt", "Makefile", "README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md"]
    assert {*wanted, "tests/package_test.py", "experiments/flagfiles/deep_mlp.flags"} <= names


def test_extras_refer_to_this_package_and_not_to_its_namesake():
    extras = PROJECT["optional-dependencies"]
    own = [item for extra in extras.values() for item in extra if item.startswith("ojax")]
    assert len(own) >= 4 and all(item.startswith(f"{PROJECT['name']}[") for item in own)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ojax.__version__ and citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
