"""Which modules belong to an application, found without running one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from qserve.deploy.registration import import_application
from qserve.deploy.sources import Sources, difference, read_sources
from qserve.exceptions import QserveException

FILES = {
    "shop/__init__.py": "",
    "shop/app.py": """
from __future__ import annotations
import json, yaml, qserve
import shop_tools.text
from . import prices
from .steps import *
def later():
    from .late import rate
    import importlib
    importlib.import_module("shop.by_name"); importlib.import_module(".by_part", __package__)
node = 1
""",
    "shop/prices.py": "from .steps import one\nfrom os import path",
    "shop/steps/__init__.py": "from .one import step",
    "shop/steps/one.py": "import shop.app\nstep = 1",
    "shop/late.py": "rate = 1",
    "shop/by_name.py": "",
    "shop/by_part.py": "",
    "shop/unused.py": "",
    "shop_tools/text.py": "",
    "yaml/site-packages/nothing": "",
}
OF_THE_SHOP = {
    *("shop", "shop.app", "shop.prices", "shop.steps", "shop.steps.one", "shop.late", "shop.by_name", "shop.by_part"),
    "shop_tools.text",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a new folder, in which modules are searched for first; what was imported is forgotten."""
    known, finders = {*sys.modules}, [*sys.meta_path]

    def write(files: Mapping[str, str], folder: str = "one") -> Path:
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if str(tmp_path / folder) not in sys.path:
            monkeypatch.syspath_prepend(tmp_path / folder)
        return tmp_path / folder

    yield write
    sys.meta_path[:] = finders
    for name in {*sys.modules} - known:
        del sys.modules[name]


def test_all_that_a_module_imports_from_the_users_folders_belongs_to_it(write: Write) -> None:
    write(FILES)

    sources = read_sources("shop.app:node")

    assert set(sources.modules) == OF_THE_SHOP
    assert not {"shop", "shop.app", "shop_tools"} & {*sys.modules}


def test_digests_do_not_depend_on_the_folder_and_differ_where_the_text_does(write: Write) -> None:
    write(FILES, "one")
    first = read_sources("shop.app:node").digests
    write(FILES, "two")
    same = read_sources("shop.app:node").digests
    write({"shop/late.py": "rate = 2", "shop/prices.py": "import shop.unused"}, "two")
    (write({}, "two") / "shop" / "by_name.py").unlink()
    other = read_sources("shop.app:node").digests

    assert first == same
    assert difference(first, other) == (
        "shop.by_name is missing, shop.late differs, shop.prices differs, shop.unused is new"
    )


def test_an_installed_package_belongs_to_an_application_only_if_it_is_the_application(write: Write) -> None:
    installed = {
        "shop/__init__.py": "",
        "shop/app.py": "import shop.more, tool, mine",
        "shop/more.py": "",
        "tool.py": "",
        "mine.py": "",
        "tool-1.dist-info/RECORD": "tool.py,sha256=x,0\n",
        "shop-1.dist-info/RECORD": "shop/__init__.py,,\nshop/app.py,,\nshop/more.py,,\n",
    }
    write(installed, "site-packages")
    assert set(read_sources("shop.app:node").modules) == {"shop", "shop.app", "shop.more"}

    write(installed, "beside")
    assert set(read_sources("shop.app:node").modules) == {"shop", "shop.app", "shop.more", "mine"}


def test_modules_are_imported_as_they_were_read_whatever_becomes_of_their_files(write: Write) -> None:
    folder = write({"shop/__init__.py": "", "shop/app.py": "from .late import rate\n", "shop/late.py": "rate = 1\n"})
    sources = read_sources("shop.app:rate")
    write({"shop/app.py": "rate = 'other'\n"})
    (folder / "shop" / "late.py").unlink()

    sources.install()

    import shop.app  # type: ignore[import-not-found]

    assert shop.app.rate == 1
    assert shop.app.__file__ == str(folder / "shop" / "app.py")


APP = "import importlib, qserve\n@qserve.deployment\ndef hello(): ...\napp = hello.bind()\n"


def test_what_a_deploy_imports_by_a_computed_name_belongs_to_the_application(write: Write) -> None:
    write({"shop.py": APP + "[importlib.import_module(f'plugins.{name}') for name in ['one']]", "plugins/one.py": ""})

    _, modules = import_application("shop:app", "default")

    assert set(modules) == {"shop", "plugins.one"}
    assert read_sources("shop:app", modules).digests == modules


def test_a_file_that_is_changed_while_it_is_deployed_is_noticed(write: Write) -> None:
    write({"shop.py": APP + "import pathlib; pathlib.Path(__file__).write_text('# other')"})

    with pytest.raises(QserveException, match=r"shop:app was changed while it was deployed \(shop differs\)"):
        import_application("shop:app", "default")


def test_code_that_is_not_valid_has_a_digest_and_its_own_error(write: Write) -> None:
    write({"shop.py": "def = 1"})

    sources = read_sources("shop:app")

    assert [*sources.digests] == ["shop"]
    sources.install()
    with pytest.raises(SyntaxError):
        import shop  # type: ignore[import-not-found] # noqa: F401


def test_a_target_that_does_not_exist_has_no_modules() -> None:
    assert read_sources("no_such_module:app") == Sources({})
