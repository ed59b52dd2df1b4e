"""One service of the compose file as a container of runc: user, limits, mounts and environment as by Docker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from deploy import compose
from deploy.image_test.images import ROOT

INIT = "/usr/bin/tini-static"
SHM, DEFAULT_SHM_SIZE = "/dev/shm", "64m"  # noqa: S108 - in the container


class Container:
    """`root` is its image's file system, `environment` what the image sets, `volumes` where volumes are kept."""

    def __init__(
        self,
        name: str,
        service: dict[str, Any],
        root: Path,
        folder: Path,
        *,
        environment: dict[str, str],
        command: list[str],
        volumes: Path,
        hosts: Path,
    ) -> None:
        self.name, self.service, self._root = name, service, root
        self._bundle = folder / "bundles" / name
        self._bundle.mkdir(parents=True)
        self.log = self._bundle / "log"
        self._runc = ["runc", "--root", str(folder / "runc")]
        self._volumes, self._hosts = volumes, hosts
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(["runc", "spec"], cwd=self._bundle, check=True)
        specification = json.loads((self._bundle / "config.json").read_text())
        self._specify(specification, environment | service.get("environment", {}), command)
        (self._bundle / "config.json").write_text(json.dumps(specification))

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._runc, "run", "--bundle", str(self._bundle), self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def execute(self, *command: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """As `docker exec`, with the user and the environment of the service."""
        return subprocess.run(
            [*self._runc, "exec", self.name, *command], capture_output=True, text=True, timeout=seconds, check=False
        )

    def is_healthy(self) -> bool:
        kind, *test = self.service["healthcheck"]["test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        limit = compose.seconds(self.service["healthcheck"]["timeout"])
        try:
            return self.execute(*command, seconds=limit).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def until_healthy(self) -> float:
        """As Docker counts: within `start_period`, then `retries` times. Returns the seconds it took."""
        check = self.service["healthcheck"]
        interval, started = compose.seconds(check["interval"]), time.monotonic()
        limit = compose.seconds(check["start_period"]) + check["retries"] * interval
        while not self.is_healthy():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > started + limit:
                raise RuntimeError(f"{self.name} did not become healthy:\n{self.log.read_text()[-4000:]}")
            time.sleep(min(interval, 1.0))
        return time.monotonic() - started

    def stop(self) -> tuple[int, float]:
        """As `docker stop`: SIGTERM, and SIGKILL after the grace. The exit status and the seconds it took."""
        assert self._process is not None
        started = time.monotonic()
        self._kill("TERM")
        try:
            status = self._process.wait(compose.seconds(self.service.get("stop_grace_period", "10s")))
        except subprocess.TimeoutExpired:
            self._kill("KILL")
            status = self._process.wait()
        return status, time.monotonic() - started

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._kill("KILL")
            self._process.wait()
        subprocess.run([*self._runc, "delete", "--force", self.name], capture_output=True, check=False)

    def _kill(self, with_signal: str) -> None:
        subprocess.run([*self._runc, "kill", self.name, with_signal], capture_output=True, check=False)

    def _specify(self, specification: dict[str, Any], environment: dict[str, str], command: list[str]) -> None:
        service, process, linux = self.service, specification["process"], specification["linux"]
        user, group = self._user(service["user"])
        capabilities = ("bounding", "effective", "inheritable", "permitted", "ambient")
        process |= {
            "terminal": False,
            "user": {"uid": user, "gid": group, "additionalGids": [group]},
            "args": ["/sbin/docker-init", "--", *command] if service["init"] else command,
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": {name: [] for name in capabilities} if service["cap_drop"] == ["ALL"] else None,
            "noNewPrivileges": "no-new-privileges:true" in service["security_opt"],
            "rlimits": [],
        }
        specification["root"] = {"path": str(self._root), "readonly": service["read_only"]}
        specification["hostname"] = f"{self.name}-1"
        # One network of its own for all, with nothing but loopback: that of this process.
        linux["namespaces"] = [space for space in linux["namespaces"] if space["type"] != "network"]
        linux["cgroupsPath"] = f"/modelpress-image-test-{os.getpid()}-{self.name}"
        linux["resources"] |= {
            "memory": {"limit": compose.size(service["mem_limit"])},
            "pids": {"limit": service["pids_limit"]},
        }
        specification["mounts"] = [mount for mount in specification["mounts"] if mount["destination"] != SHM]
        specification["mounts"] += self._mounts()

    def _mounts(self) -> list[dict[str, Any]]:
        mounts = [
            _tmpfs(f"{SHM}:size={self.service.get('shm_size', DEFAULT_SHM_SIZE)},mode=1777"),
            *(_tmpfs(text) for text in self.service["tmpfs"]),
            _bind(self._hosts, "/etc/hosts", "ro"),
            _bind(Path(INIT), "/sbin/docker-init", "ro"),
        ]
        for text in self.service.get("volumes", []):
            source, _, rest = text.rpartition(":") if text.endswith(":ro") else (text, "", "rw")
            kept, _, target = source.rpartition(":")
            if kept.startswith("."):
                mounts.append(_bind(ROOT / kept, target, rest))
            else:
                mounts.append(_bind(self._volume(kept or f"{self.name}-anonymous", target), target, rest))
        return mounts

    def _volume(self, name: str, target: str) -> Path:
        """A new volume has the owner and the mode of the folder that it covers."""
        volume, covered = self._volumes / name, self._root / target.lstrip("/")
        if not volume.exists():
            volume.mkdir(parents=True)
            status = covered.stat()
            os.chown(volume, status.st_uid, status.st_gid)
            shutil.copymode(covered, volume)
        return volume

    def _user(self, text: str) -> tuple[int, int]:
        user, _, group = text.partition(":")
        if user.isdecimal():
            return int(user), int(group or 0)
        for line in (self._root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(gid)
        raise RuntimeError(f"{self.name}: its image has no user {user}")


def _tmpfs(text: str) -> dict[str, Any]:
    target, _, options = text.partition(":")
    defaults = ["nosuid", "nodev", "noexec"]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": [*defaults, *options.split(",")]}


def _bind(source: Path, target: str, mode: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source.resolve()), "options": ["rbind", mode]}
