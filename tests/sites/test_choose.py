"""Which site is in use: --site > $SWIFTLAUNCH_SITE > host name > local."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import InputError, UserError
from launcher.sites import Choice, choose_site, site_files

pytestmark = pytest.mark.unit

BODY = 'scheduler = "slurm"\nruns_dir = "/r"\nmodels_dir = "/m"\nenvironments_dir = "/e"\n'
NODE = '[node]\ncpus = 1\nmemory = "1G"\n'


class Places:
    """A home and a folder of shipped sites."""

    def __init__(self, root: Path) -> None:
        self.home, self.shipped = root / "home", root / "shipped"
        self.user = self.home / ".config/swiftlaunch/sites"
        self.shipped.mkdir()
        self.user.mkdir(parents=True)
        self.write(self.shipped, "local")

    def write(self, folder: Path, name: str, *hostnames: str, head: str = "") -> Path:
        path = folder / f"{name}.toml"
        path.write_text(f"{head}hostnames = {list(hostnames)}\n{BODY}{NODE}", encoding="utf-8")
        return path

    def choose(self, name: str = "", variable: str = "", hostname: str = "laptop") -> Choice:
        environ = {"SWIFTLAUNCH_SITE": variable} if variable else {}
        return choose_site(name, environ=environ, hostname=hostname, home=self.home, shipped=self.shipped)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_order_of_choice(places: Places) -> None:
    for name in ("one", "two"):
        places.write(places.user, name)
    places.write(places.user, "three", "login*.centre.org")
    host = "login7.centre.org"
    choice = places.choose("one", "two", host)
    assert (choice.site.name, choice.why) == ("one", "--site")
    choice = places.choose("", "two", host)
    assert (choice.site.name, choice.why) == ("two", "$SWIFTLAUNCH_SITE")
    choice = places.choose("", "", host)
    assert (choice.site.name, choice.why) == ("three", "host name login7.centre.org matches login*.centre.org")
    choice = places.choose()
    assert (choice.site.name, choice.why) == ("local", "no site names this host; local is the last choice")


def test_users_file_wins_over_the_shipped_one(places: Places) -> None:
    places.write(places.user, "local", head='description = "mine"\n')
    assert places.choose().site.description == "mine"
    assert [(file.name, file.shipped) for file in site_files(places.home, places.shipped)] == [("local", False)]


def test_shipped_examples_are_never_chosen_by_host_name(places: Places) -> None:
    places.write(places.shipped, "example-big", "*")
    assert places.choose().site.name == "local"
    assert places.choose("example-big").site.name == "example-big"


def test_two_matches_are_not_guessed(places: Places) -> None:
    places.write(places.user, "one", "login*")
    places.write(places.user, "two", "*1")
    with pytest.raises(UserError, match="matches several sites: one, two"):
        places.choose(hostname="login1")
    assert places.choose(hostname="login2").site.name == "one"


def test_a_path_is_taken_as_one(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = places.write(tmp_path, "elsewhere")
    assert places.choose(str(path)).site.name == "elsewhere"
    monkeypatch.chdir(tmp_path)
    assert places.choose("elsewhere.toml").site.path == str(path)
    places.write(places.home, "mine")
    assert places.choose("~/mine.toml").site.name == "mine"


def test_unknown_name_gets_a_guess(places: Places) -> None:
    places.write(places.user, "jupiter")
    with pytest.raises(UserError, match="no site 'jupitr'") as caught:
        places.choose("jupitr")
    assert caught.value.hint == "did you mean jupiter?"
    with pytest.raises(UserError):
        places.choose("", "nowhere")


def test_a_broken_file_is_told_not_skipped(places: Places) -> None:
    (places.user / "broken.toml").write_text("scheduler = 3", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.toml"):
        places.choose()
    assert places.choose("local").site.name == "local"


def test_a_copy_must_be_renamed_inside_too(places: Places) -> None:
    places.write(places.user, "mine", head='name = "example-slurm"\n')
    with pytest.raises(InputError, match="calls itself 'example-slurm', its file 'mine'"):
        places.choose("mine")
