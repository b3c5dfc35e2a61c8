"""Files beside the application that have the name of a module which qserve or one of its libraries imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from http_client import Client
from processes import Site, free_port

APP = """
import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

@qserve.deployment
class Model:
    def __init__(self):
        import helper
        self.word = helper.WORD

    def size(self, value):
        return [self.word, len(value)]

with InputNode() as request:
    app = DAGDriver.bind(Model.bind().size.bind(request), http_adapter=json_request)

if __name__ == "__main__":
    import sys
    qserve.run(app, port=int(sys.argv[1]))
    print("qserve: ready", flush=True)
    sys.stdin.read()
    import time
    time.sleep(600)
"""
OF_LIBRARIES = (
    "billiard celery click flask gevent greenlet gunicorn hiredis itsdangerous jinja2 kombu markupsafe msgpack redis"
    " setproctitle vine werkzeug zope brotli dotenv psutil simplejson ujson watchdog"
)
OF_PYTHON = (
    "asyncio base64 bisect calendar cmd code concurrent configparser csv curses dataclasses datetime decimal difflib"
    " email fcntl getpass gettext glob gzip hashlib hmac html http imaplib json locale logging mimetypes"
    " multiprocessing netrc numbers optparse pdb pickle platform plistlib pprint profile pty queue random secrets"
    " select shlex shutil smtplib socket socketserver ssl statistics string struct subprocess tarfile tempfile textwrap"
    " threading timeit token tomllib traceback typing unittest urllib uuid wave xml xmlrpc zipfile"
)
"""Of what Python itself does not need to find the module that ``-m`` names."""


def write(site: Site, names: str) -> Path:
    """Write the application, and files that leave a mark when they are run."""
    folder = site.folder / "code"
    folder.mkdir()
    (folder / "shop.py").write_text(APP)
    (folder / "helper.py").write_text("WORD = 'helped'\n")
    for name in names.split():
        mark = folder / "executed"
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise OSError({name!r})\n")
    return folder


def check(port: int, folder: Path) -> None:
    client = Client(port)
    assert client.post("/", "small").json == ["helped", 5]
    assert client.post("/", "x" * 1_500_000).json == ["helped", 1_500_000]  # it is parsed in another process
    assert not (folder / "executed").exists(), (folder / "executed").read_text()


# which folders are searched is decided in tests/base/test_import_path.py
@pytest.mark.parametrize(
    "start", ["module", *(pytest.param(x, marks=pytest.mark.long) for x in ("script", "PYTHONPATH"))]
)
def test_no_process_runs_files_that_have_the_name_of_a_library(site: Site, start: str) -> None:
    port = free_port()
    folder = write(site, f"{OF_LIBRARIES} {'email uuid queue' if start == 'PYTHONPATH' else OF_PYTHON}")
    command = [sys.executable, "-m", "qserve"] if start == "module" else [str(Path(sys.executable).with_name("qserve"))]
    env = {"PYTHONPATH": f".:{folder}"} if start == "PYTHONPATH" else {}

    process = site.start([*command, "run", "shop:app", "--port", str(port)], cwd=folder, env=env)

    process.wait_for("qserve: ready")
    check(port, folder)


@pytest.mark.long  # tests/base/test_import_path.py has which folders are searched
def test_the_processes_of_a_program_do_not_run_the_files_beside_it(site: Site) -> None:
    port = free_port()
    folder = write(site, "celery flask gevent gunicorn kombu werkzeug setproctitle")

    process = site.start([sys.executable, "shop.py", str(port)], cwd=folder)

    process.wait_for("qserve: ready")
    check(port, folder)
    process.press_ctrl_c()
    process.wait()
