"""The image, the composition and the systemd unit of deploy/: what the image runs is run here, as another user."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_proxies import get
from tests.redis.support import redis_server
from tests.support import PATIENCE, ROOT, free_port, require, wait_until

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
STEPS = [line for line in re.sub(r"\\\n", "", DOCKERFILE).splitlines() if line and not line.startswith("#")]
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}
NOBODY = 65534
# Another user, who may read what root may: the interpreter and its packages can lie in root's home.
AS_NOBODY = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=+dac_read_search "
    "--ambient-caps=+dac_read_search --no-new-privs"
).split()
STOPPED = 2.0  # seconds after SIGTERM within which nothing is left


def exec_form(instruction: str) -> list[str]:
    """The command of the image's last CMD or HEALTHCHECK, as the list that it is."""
    (step,) = [line for line in STEPS if line.startswith(instruction)]
    command: list[str] = json.loads(step[step.index("[") :])
    return [part.replace("/venv/bin/pserve", "-m pyramid.scripts.pserve") for part in command]


def test_the_image_is_not_roots_and_copies_what_there_is() -> None:
    assert {step.split()[0] for step in STEPS} <= INSTRUCTIONS
    users = [step.split()[1] for step in STEPS if step.startswith("USER")]
    assert users
    assert "0" not in users
    for step in STEPS:
        if step.startswith("COPY") and "--from" not in step:
            for source in step.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_the_composition_names_files_and_services_that_there_are() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    services = set(re.findall(r"^  ([\w-]+):(?: \*node)?$", text.partition("services:")[2], re.M))
    assert services == {"redis", "node-1", "node-2", "proxy"}
    assert (ROOT / "deploy" / "haproxy.cfg").read_text().count("${NODE_1-") == 2
    assert re.findall(r"NODE_\d: ([\w-]+):6543", text) == ["node-1", "node-2"]


@pytest.mark.heavy
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_what_the_image_runs_serves_and_stops_as_another_user(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "app"
    folder.mkdir()
    for name in ("production.ini", "deploy/container.ini"):
        shutil.copy(ROOT / name, folder)
    ini = folder / "container.ini"
    ini.write_text(ini.read_text().replace("0.0.0.0:6543", f"0.0.0.0:{port}"))
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    with redis_server(tmp_path) as redis:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "REDIS_URL": redis.url, "PYTHONUNBUFFERED": "1"}
        assert exec_form("CMD") == ["-m pyramid.scripts.pserve", "container.ini"]
        command = [*AS_NOBODY, sys.executable, "-m", "pyramid.scripts.pserve", "container.ini"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        try:

            def ready() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    return get(port, "/health/ready")[0] == 200
                except OSError:
                    return False

            wait_until(ready, what="the node")
            assert Path(f"/proc/{process.pid}").stat().st_uid == NOBODY
            check = [sys.executable, *exec_form("HEALTHCHECK")[1:]]
            check[-1] = check[-1].replace(":6543", f":{port}")
            assert subprocess.run(check, timeout=PATIENCE, check=False).returncode == 0
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            assert time.monotonic() - began < STOPPED
        finally:
            process.kill()
            process.wait(PATIENCE)


def test_without_its_variable_the_container_says_which(tmp_path: Path) -> None:
    for name in ("production.ini", "deploy/container.ini"):
        shutil.copy(ROOT / name, tmp_path)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyramid.scripts.pserve", "container.ini"]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "pushdemo.redis_url = env:REDIS_URL: the environment variable REDIS_URL is not set" in ended.stderr


@pytest.mark.heavy
def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze", "systemd")
    unit = tmp_path / "pushdemo@1.service"
    text = (ROOT / "deploy" / "pushdemo@.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/srv/pushdemo/env/bin/pserve", shutil.which("true") or ""))
    ended = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert [line for line in ended.stderr.splitlines() if "pushdemo@" in line] == []
