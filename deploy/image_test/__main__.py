"""`python -m deploy.image_test`: build both images, start what docker-compose.yml says, finish a job.

As root, on Debian, without Docker: buildah builds, debootstrap stands in for what would be downloaded, runc runs. The
last lines say what that leaves unproved.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from deploy.image_test.images import BASE, ROOT, SUITE, Images, unpinned
from deploy.image_test.progress import claim, timed

PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "runc": "runc", "tini-static": "tini", "ip": "iproute2"}
UNPROVED = (
    "CUDA and the gpu profile: torch was its CPU build, no driver, no container toolkit",
    f"the real base image {BASE}: Debian's own Python of {SUITE} stood in for it",
    "the real images of nginx, postgres and redis, and their entry points: Debian's packages stood in for them",
    "registries, pulls and tags",
    "Docker and Compose themselves: their networks, restarts, logs, seccomp and AppArmor profiles",
)


def build(folder: Path) -> dict[str, Any]:
    """Both images and the servers' tree. Returns what `services` needs to know of them."""
    images = Images(folder)
    timed("a stand-in for the base image", images.make_base)
    servers = timed("a stand-in for the images of the servers", images.make_servers)
    arguments: dict[str, dict[str, str]] = {"api": {}, "worker": {"TORCH_OPTIONS": "--find-links=/wheels"}}
    found: dict[str, Any] = {"servers": str(servers)}
    for target, given in arguments.items():
        root = timed(f"image {target}", partial(images.build, target, given))
        loose = unpinned(root)
        claim(not loose, f"image {target} has only what requirements.lock pins", ", ".join(loose))
        found[target] = {"root": str(root), "configuration": images.configuration(target)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.image_test", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "image-test", help="6 GB, removed afterwards")
    folder = parser.parse_args().folder.resolve() / secrets.token_hex(4)
    missing = sorted(package for command, package in PACKAGES.items() if shutil.which(command) is None)
    if missing or os.geteuid() != 0:
        print(f"this needs root and Debian's packages: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    try:
        (folder / "built.json").write_text(json.dumps(build(folder)))
        # From here on there is no network but loopback, and every mount is seen by nobody else.
        services = [sys.executable, "-P", "-m", "deploy.image_test.services", str(folder)]
        status = subprocess.run(["unshare", "--net", "--mount", *services], check=False).returncode
    except RuntimeError as error:
        print(error, file=sys.stderr)
        status = 1
    finally:
        Images(folder).remove()
    for line in UNPROVED:
        print(f"not shown here: {line}")
    print(f"image-test: {'failed' if status else 'passed'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
