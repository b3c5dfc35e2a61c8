"""Prepare a release in `dist/`, and say which commands publish it: `make release`, or `make release DRAFT=1` to try it.

What is published is made from the last commit and from the index's newest libraries that setup.cfg allows: both
distributions, the notes (the version's section of CHANGELOG.md), the list of all parts with their licences (an SBOM in
CycloneDX's format), and the digests of these files. Nothing is uploaded or tagged here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import distributions

ROOT = Path(__file__).parents[1]
LICENCES = ("Apache", "BSD", "CNRI-Python", "ISC", "MIT", "MPL", "Mozilla", "Python Software Foundation", "PSF", "ZPL")
"""What may be installed with qserve: nothing that has a say in how users of qserve license their programs."""
_SECTION = re.compile(r"^## (\S+) \(([^)\n]+)\)\n(.*?)(?=^## |\Z)", re.M | re.S)


def main() -> None:
    """Prepare it, or end with what is to be mended first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", action="store_true", help="the version needs no date yet")
    draft = parser.parse_args().draft
    version = re.findall(r'^__version__ = "(.+)"', (ROOT / "qserve" / "__init__.py").read_text(), re.M)[0]
    text = notes((ROOT / "CHANGELOG.md").read_text(), version, draft)
    distributions.main()
    folder = ROOT / "dist"
    wheel = folder / f"qserve_celery-{version}-py3-none-any.whl"
    (folder / "NOTES.md").write_text(text)
    with tempfile.TemporaryDirectory() as temporary:
        python = installed(wheel, Path(temporary))
        check_licences(python)
        audit(python)
        write_parts(python, folder / f"qserve-celery-{version}.cdx.json")
    write_digests(folder)
    print(f"\nRead dist/NOTES.md, then sign and publish {version}:")
    print(f"  git tag --sign v{version} --file dist/NOTES.md --cleanup verbatim")
    print(f"  git push origin v{version}")
    print("  gpg --armor --detach-sign dist/SHA256SUMS")
    print("  twine upload dist/*.whl dist/*.tar.gz")


def notes(changelog: str, version: str, draft: bool = False) -> str:
    """Return a version's section of the changelog.

    Raises:
      SystemExit: There is none, or it says that the version is not released.
    """
    sections = {found[1]: (found[2], found[3]) for found in _SECTION.finditer(changelog)}
    if version not in sections:
        known = ", ".join(sections) or "none"
        sys.exit(f"CHANGELOG.md has no section '## {version} (DATE)'; it has {known}")
    when, text = sections[version]
    if not draft and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", when):
        sys.exit(f"CHANGELOG.md says '## {version} ({when})': write the day of the release there, such as (2027-01-31)")
    return f"qserve {version}\n\n{text.strip()}\n"


def installed(wheel: Path, folder: Path) -> Path:
    """Install a wheel in a new environment as users would, check it, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", "pip", "setuptools"], check=True)  # not parts of qserve
    subprocess.run([folder / "bin" / "qserve", "--version"], cwd=folder, check=True)
    return python


def check_licences(python: Path) -> None:
    """End if something is installed whose licence is not one of those that are allowed."""
    print("licences:", flush=True)
    allowed = ["--from=mixed", "--partial-match", "--allow-only", ";".join(LICENCES)]
    subprocess.run([_tool("pip-licenses"), "--python", python, "--summary", *allowed], check=True)


def audit(python: Path) -> None:
    """End if something is installed that has a known vulnerability."""
    print("known vulnerabilities:", flush=True)
    packages = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    command = [_tool("pip-audit"), "--progress-spinner", "off", "--path", packages.strip()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    unknown = done.stdout.count("could not be audited")
    print(done.stdout if done.returncode else done.stderr, end="")
    if done.returncode:
        sys.exit("raise the lower bounds in setup.cfg above what is listed, or wait for a fix")
    if unknown > 2:  # the two distributions themselves are new
        print(f"WARNING: the index has no word on vulnerabilities of {unknown} packages: audit again where it has")


def write_parts(python: Path, file: Path) -> None:
    """Write the list of all parts of an installation with their versions and licences, the same bytes each time."""
    command = [_tool("cyclonedx-py"), "environment", "--output-reproducible", python]
    parts = json.loads(subprocess.check_output(command))
    for part in parts["components"]:
        if part["name"] == distributions.FULL:  # where this machine has it is of no use to others
            del part["externalReferences"]
    file.write_text(json.dumps(parts, indent=2) + "\n")


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of all files in a folder beside them."""
    files = sorted(file for file in folder.iterdir() if file.name not in ("SHA256SUMS", "SHA256SUMS.asc"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _tool(name: str) -> str:
    return os.fspath(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    main()
