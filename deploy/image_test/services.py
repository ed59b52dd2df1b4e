"""`python -m deploy.image_test.services FOLDER`: every service from the images in FOLDER, to the end of a job.

In a network of its own, where the names of the services lead to loopback, as `__main__` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy import compose
from deploy.image_test import names
from deploy.image_test.containers import Container
from deploy.image_test.images import PATH
from deploy.image_test.progress import claim
from modelpress import Client, prepare

SECRETS = {
    "POSTGRES_PASSWORD": "5e1ec7ed0fab1e5a",
    "REDIS_PASSWORD": "b0a7b0a7c0ffee00",
    "MODELPRESS_BOOTSTRAP_KEY": "mp_0123456789abcdef0123456789abcdef01234567",
}
JOB_SECONDS = 300.0
POSTGRES = """
set -e
export PATH="$PATH:$(echo /usr/lib/postgresql/*/bin)" PGDATA=/var/lib/postgresql/data
if [ ! -e $PGDATA/PG_VERSION ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password $POSTGRES_INITDB_ARGS > /dev/null
    echo "host all all all scram-sha-256" >> $PGDATA/pg_hba.conf
    pg_ctl --wait --options="-c listen_addresses=''" start > /dev/null
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait stop > /dev/null
fi
exec postgres -c listen_addresses='*'
"""
"""What the entry point of the postgres image does, as far as the compose file asks it to."""


class Services:
    """Every service but the GPU's; leaving the `with` block removes what still runs."""

    def __init__(self, folder: Path, built: dict[str, Any]) -> None:
        project = compose.read(SECRETS)
        self._order = [name for name in compose.in_order(project["services"]) if name != "worker-gpu"]
        addresses = {name: f"127.1.0.{number}" for number, name in enumerate(project["services"], 1)}
        hosts = folder / "hosts"
        known = {"localhost": "127.0.0.1"} | addresses
        hosts.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        names.serve(addresses)
        self.containers = {}
        for name in self._order:
            service = project["services"][name]
            image = built.get(service["build"]["target"]) if "build" in service else None
            environment = {"PATH": PATH}
            if image is not None:
                environment = dict(pair.split("=", 1) for pair in image["configuration"]["Env"])
            self.containers[name] = Container(
                name,
                service,
                Path(image["root"] if image else built["servers"]),
                folder,
                environment=environment,
                command=["sh", "-c", POSTGRES] if name == "postgres" else service["command"],
                volumes=folder / "volumes",
                hosts=hosts,
            )

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        for container in self.containers.values():
            container.remove()

    def start(self) -> None:
        """In the order of `depends_on`, each when what it waits for is there."""
        for name in self._order:
            container = self.containers[name]
            for other, demand in container.service.get("depends_on", {}).items():
                if demand["condition"] == "service_healthy":
                    self.containers[other].until_healthy()
            container.start()
            if "healthcheck" not in container.service:
                status = container.wait(120)
                claim(status == 0, f"{name} ends with 0", container.log.read_text()[-3000:])
        for name in self._order:
            if "healthcheck" in self.containers[name].service:
                took = self.containers[name].until_healthy()
                print(f"shown   {name} is healthy ({took:.1f} s)", flush=True)

    def stop(self) -> None:
        for name in reversed(self._order):
            if "healthcheck" in self.containers[name].service:
                status, took = self.containers[name].stop()
                # uvicorn ends by the signal it was told to end with, once all is done.
                claim(status in (0, 143), f"{name} stops by itself, in {took:.1f} s", f"status {status}")


def check_images(built: dict[str, Any], services: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        configuration, service = built[name]["configuration"], services[name]
        same = (configuration["User"], configuration["Cmd"], configuration["Healthcheck"]["Test"])
        wanted = (service["user"], service["command"], service["healthcheck"]["test"])
        claim(same == wanted, f"image {name} has user, command and health check of its service", f"{same}, {wanted}")
    installed = Path(built["api"]["root"], "opt/venv/lib/python3.11/site-packages")
    thick = [name for name in ("torch", "numpy", "onnx", "worker") if (installed / name).exists()]
    claim(not thick, "image api has no torch, no numpy, no engine", str(thick))


def check_hardening(containers: dict[str, Container]) -> None:
    for name, container in containers.items():
        if "healthcheck" not in container.service:
            continue
        lines = container.execute("cat", "/proc/1/status").stdout.splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        bare = all(int(status[which], 16) == 0 for which in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
        user = int(status["Uid"].split()[0])
        wrote = container.execute("touch", "/written").returncode == 0
        hardened = bare and user != 0 and status["NoNewPrivs"] == "1" and not wrote
        claim(hardened, f"{name} is user {user}, without capabilities, on a root it cannot write", str(status))


def finish_a_job(folder: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 4),
    ).eval()
    inputs = torch.randn(200, 3, 16, 16)
    with torch.no_grad():
        scores = network(inputs)
    file = prepare(network, (inputs[:2],), folder / "network.pt2")
    np.savez(folder / "data.npz", x=inputs.numpy(), y=(scores - scores.mean(0)).argmax(1).numpy())
    steps = [{"step": "prune", "amount": {"macs": 0.5}, "round_to": 4}, {"step": "finetune", "epochs": 1}]
    steps.append({"step": "quantize"})
    started = time.monotonic()
    with Client("http://127.0.0.1:8080", SECRETS["MODELPRESS_BOOTSTRAP_KEY"]) as client:
        job = client.jobs.create(
            model=client.models.upload(file), dataset=client.datasets.upload(folder / "data.npz"), steps=steps
        )
        job.wait(timeout=JOB_SECONDS)
        claim(job.status == "succeeded", f"a job succeeds ({time.monotonic() - started:.0f} s)", f"{job}\n{job.log()}")
        job.download(folder / "out")
        report = job.report()
    smaller = report["compressed"]["macs"] / report["original"]["macs"]
    claim(smaller < 0.55, f"the network that comes back has {smaller:.0%} of the multiply-accumulates")


def main(folder: Path) -> int:
    built = json.loads((folder / "built.json").read_text())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    check_images(built, compose.read(SECRETS)["services"])
    with Services(folder, built) as services:
        try:
            services.start()
            check_hardening(services.containers)
            finish_a_job(folder)
            services.stop()
        except Exception:
            for container in services.containers.values():
                if container.log.exists():
                    print(f"--- {container.name}\n{container.log.read_text()[-2000:]}", file=sys.stderr)
            raise
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except RuntimeError as error:
        sys.exit(str(error))
