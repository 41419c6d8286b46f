"""Paths in flag files, in notebooks and on the right side of `--flag=`, which no shell reads."""

import pathlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ojax
from ojax import datasets, paths
from ojax.datasets import DatasetError
from ojax.online.weights import WeightsError


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUN", "seven")
    monkeypatch.setenv("DATA", "~/data")
    monkeypatch.delenv("NONE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x", "{home}/x"),
        ("~", "{home}"),
        (Path("~/x"), "{home}/x"),
        ("$HOME/x", "{home}/x"),
        ("${HOME}/run_$RUN", "{home}/run_seven"),
        ("$DATA/x", "{home}/data/x"),
        ("results/x", "results/x"),
        ("../sp ace/ünïcode \U0001f9e0", "../sp ace/ünïcode \U0001f9e0"),
        ("O'Brien/rock'n'roll's", "O'Brien/rock'n'roll's"),
        ("run#3/a=b,c:d", "run#3/a=b,c:d"),
        ("cost$5/x$", "cost$5/x$"),
        ("x/~/y", "x/~/y"),
        (Path("/work #2/$RUN/'x'"), "/work #2/$RUN/'x'"),
    ],
)
def test_paths_mean_what_a_shell_would_make_of_them(written, meant, home):
    assert paths.expanded(written) == meant.format(home=home)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("gs://bucket/run", "on the network"),
        (Path("gs://bucket/run"), "on the network"),
        ("s3://bucket", "on the network"),
        ("file:///run", "on the network"),
        ("https://host/x.npz", "on the network"),
        ("me@host:/run", "on the network"),
        ('"/run"', "quotes"),
        ("'/my run'", "quotes"),
        ('/data/"my run"', "quotes"),
        ('"$HOME"/x', "quotes"),
        ("“/run”", "quotes"),
        ("/run  # the second", "comment"),
        ("/run // the second", "comment"),
        ("$NONE/x", "'NONE' is not set"),
        ("/data/${NONE}", "'NONE' is not set"),
        ("$EMPTY/x", "'EMPTY' is not set"),
        ("${HOME:-/tmp}/x", "not set"),
        ("$(pwd)/x", "a shell"),
        ("`pwd`/x", "a shell"),
        ("~nobody_of_this_name/x", "no user 'nobody_of_this_name'"),
        ("", "empty"),
        ("  ", "empty"),
        (" /run", "blanks"),
        ("/run\t", "blanks"),
        ("nul\0", "NUL"),
        ("latin\udce9", "UTF-8"),
        (b"/run", "bytes"),
    ],
)
def test_paths_that_no_shell_has_read_are_refused(written, words, home):
    with pytest.raises(ValueError, match=words) as caught:
        paths.expanded(written)
    assert "\n" not in str(caught.value)


def test_places_on_the_network_where_they_may_be(home):
    assert paths.expanded("gs://bucket/$RUN", remote=True) == "gs://bucket/seven"
    with pytest.raises(ValueError, match="on the network"):
        paths.expanded("host:/run", remote=True)


@given(st.text(max_size=12))
@example("~\n0")
def test_any_text_is_expanded_once_or_refused_in_one_line(text):
    try:
        path = paths.expanded(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert path == paths.expanded(path) and str(pathlib.PurePath(path))


def test_every_path_of_the_library_is_read(home, tmp_path):
    with pytest.raises(WeightsError, match=f"no weights in {tmp_path}/none"):
        ojax.load_weights("~/none")
    with pytest.raises(WeightsError, match="on the network"):
        ojax.load_weights("gs://bucket/run")
    for name in ("npz:$HOME/none.npz", "~/none.npz", Path("~/none.npz")):
        with pytest.raises(DatasetError, match=f"no file '{tmp_path}/none.npz'"):
            datasets.load(name)
    with pytest.raises(DatasetError, match=f"no folder '{tmp_path}/none'"):
        datasets.load("idx:~/none")
    with pytest.raises(DatasetError, match="quotes"):
        datasets.load("idx:'~/none'")
    with pytest.raises(DatasetError, match=f"not prepared in {tmp_path}/none"):
        datasets.load("mnist", data_dir="~/none", cache_dir="$HOME/cache")


def test_what_may_not_be_looked_into_beside_a_missing_folder(tmp_path):
    """A link whose target has too long a name: its status is an error for root too."""
    (tmp_path / "link").symlink_to("x" * 300)
    with pytest.raises(DatasetError, match=f"no folder '{tmp_path}/none'"):
        datasets.load(f"idx:{tmp_path}/none")
