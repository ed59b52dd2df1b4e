"""The images of Dockerfile.gpu, built by buildah. What they stand on is set up by debootstrap, not downloaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SUITE = "bookworm"
BASE = "python:3.11-slim-bookworm"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_BASE_PACKAGES = ("python3.11", "python3.11-venv", "python3-pip", "ca-certificates")
_SERVER_PACKAGES = ("postgresql", "redis-server", "nginx-light", "wget")
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


class Images:
    """All in one folder: trees, buildah's storage, wheels. Needs root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        storage = ["--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        self._buildah = ["buildah", *storage]

    def make_base(self) -> None:
        """A tree with Debian's Python, under the name of the real base image."""
        tree = self._debootstrap("base", _BASE_PACKAGES)
        for name in ("python", "python3"):
            (tree / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        # pip in there asks who pip asks here.
        shutil.copyfile(Path("/") / _CERTIFICATES, tree / _CERTIFICATES)
        (tree / "etc/pip.conf").write_text(f"[global]\ncert = /{_CERTIFICATES}\n")
        container = self._do("from", "scratch")
        self._do("add", "--quiet", container, str(tree), "/")
        self._do("config", "--env", f"PATH={PATH}", container)
        self._do("commit", "--quiet", container, f"localhost/{BASE}")
        self._do("rm", container)
        _remove(tree)

    def make_servers(self) -> Path:
        """A tree with Debian's PostgreSQL, Redis and nginx, and the folders that their images have for volumes."""
        tree = self._debootstrap("servers", _SERVER_PACKAGES)
        for user, path in (("postgres", "var/lib/postgresql/data"), ("redis", "data")):
            (tree / path).mkdir(mode=0o700)
            subprocess.run(["chroot", str(tree), "chown", f"{user}:", f"/{path}"], check=True)
        (tree / "run/postgresql").chmod(0o3777)  # runc gives a tmpfs the mode of what it covers
        return tree

    def build(self, target: str, arguments: dict[str, str]) -> Path:
        """Build a target, with the torch of this Python; returns the root file system."""
        wheels = self.folder / "wheels"
        if not wheels.exists():
            torch = f"torch=={metadata.version('torch')}"
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(wheels), torch]
            subprocess.run(pip, check=True)
        options = ["--isolation", "chroot", "--format", "docker", "--pull-never", "--quiet"]
        given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        places = ["--volume", f"{wheels}:/wheels:ro", "--file", str(ROOT / "Dockerfile.gpu"), str(ROOT)]
        self._do("bud", *options, *given, "--target", target, "--tag", f"modelpress-{target}", *places)
        return Path(self._do("mount", self._do("from", "--pull-never", f"modelpress-{target}")))

    def configuration(self, target: str) -> dict[str, Any]:
        """As `docker inspect` has it: User, Env, Cmd, Healthcheck …"""
        said = json.loads(self._do("inspect", "--type", "image", f"modelpress-{target}"))
        configuration: dict[str, Any] = said["Docker"]["config"]
        return configuration

    def remove(self) -> None:
        if (self.folder / "storage").exists():
            self._do("rm", "--all")
            self._do("rmi", "--all", "--force")
        _remove(self.folder)

    def _debootstrap(self, name: str, packages: tuple[str, ...]) -> Path:
        tree = self.folder / name
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(tree)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"debootstrap ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return tree

    def _do(self, *arguments: str) -> str:
        done = subprocess.run([*self._buildah, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"buildah {arguments[0]} ended with {done.returncode}:\n{done.stderr[-6000:]}")
        return done.stdout.strip()


def unpinned(root: Path) -> list[str]:
    """What the image has installed and requirements.lock does not name with this version."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {_normal(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    found = metadata.distributions(path=[str(root / "opt/venv/lib/python3.11/site-packages")])
    return [
        f"{found_one.name}=={found_one.version}"
        for found_one in found
        if found_one.name != "modelpress" and locked.get(_normal(found_one.name)) != found_one.version.partition("+")[0]
    ]


def _remove(tree: Path) -> None:
    """Never through a mount that an interrupted program left there."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(tree)], check=True)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
