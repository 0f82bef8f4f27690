"""Machines of AWS: `ray up cluster-aws.yaml` borrows and sets up a head, and `launch down` gives everything back.

moto is AWS: it checks what it is asked, keeps keys, groups, roles and instances, and runs nothing. The instance that it
lends is a namespace of this machine with an sshd, which gets the instance's addresses and its key. Ray is not started
there: what it does on machines that are set up, test_hosts.py shows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support_hosts import Hosts, filled_in, missing

_LACKING = [name for name in ("moto", "flask", "boto3") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(_LACKING), reason="needs pip install 'moto[server]' 'localpipe[aws]'"),
]

ROOT = Path(__file__).parent.parent
_REGION = "eu-central-1"
_CHECKS = {
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
}
_IMAGE = f"""
import boto3
print(boto3.client("ec2", {_REGION!r}).describe_images()["Images"][0]["ImageId"])
"""
_INSTANCES = f"""
import boto3, json
for lent in boto3.client("ec2", {_REGION!r}).describe_instances()["Reservations"]:
    for one in lent["Instances"]:
        print(json.dumps(one, default=str))
"""
_AWAIT = f"""
import boto3, json, time
aws = boto3.client("ec2", {_REGION!r})
while not (lent := aws.describe_instances()["Reservations"]):
    time.sleep(1)
one = lent[0]["Instances"][0]
print(json.dumps([one["PrivateIpAddress"], one["PublicIpAddress"], one["KeyName"]]), flush=True)
"""


def _boot(hosts: Hosts, said: Iterator[str]) -> None:
    """Makes a host of the first instance."""
    own, known, key = json.loads(next(said))
    hosts.name_also(1, own, known)
    private = hosts.home(0) / ".ssh" / f"{key}.pem"
    public = subprocess.run(["ssh-keygen", "-y", "-f", private], check=True, capture_output=True, text=True).stdout
    (hosts.home(1) / ".ssh" / "authorized_keys").write_text(public)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Host 0, a person's machine, where localpipe and a filled in cluster-aws.yaml are, with the AWS that it asks; and
    host 1, the first instance that AWS lends.
    """
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with Hosts(1) as made:
        settings = made.home(0) / ".aws"
        settings.mkdir()
        (settings / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        (settings / "config").write_text(f"[default]\nendpoint_url = http://{made.address(0)}:5000\n")
        serve = f"exec python -m moto.server -H {made.address(0)} -p 5000 > moto.log 2>&1"
        made.start(0, "bash", "-c", serve, **_CHECKS)
        asked = "until (exec 3<> /dev/tcp/$0/5000) 2> /dev/null; do sleep 0.5; done"
        made.run(0, "bash", "-c", asked, made.address(0))
        changes = {
            "ami-0123456789abcdef0 # <-": made.run(0, "python", "-c", _IMAGE).stdout.strip(),
            "ssh_user: ubuntu": "ssh_user: root",
            "g6.12xlarge # <-": "g6.12xlarge\n      InstanceMarketOptions: {MarketType: spot}",
            "sudo apt-get -o": "true",
            ".venv/bin/pip install -c": "true",
            "/bin/ray start --head": "/bin/python -c 'import ray; print(\"Ray would start\")'",
            "~/localpipe/tools/await_workers.py": "-c 'print(\"workers would join\")'",
        }
        file = made.check_out(0, ROOT) / "cluster-aws.yaml"
        file.write_text(filled_in(file.read_text("utf-8"), changes), "utf-8")
        watch = made.start(0, "python", "-c", _AWAIT)
        assert watch.stdout is not None
        threading.Thread(target=_boot, args=(made, watch.stdout), daemon=True).start()
        yield made


def _lent(hosts: Hosts) -> list[dict[str, Any]]:
    """Instances as AWS describes them, also those that are over."""
    done = hosts.run(0, "python", "-c", _INSTANCES)
    assert done.returncode == 0, done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ray_up_has_aws_lend_a_head_and_sets_it_up_and_down_gives_it_back(hosts: Hosts) -> None:
    up = "(umask 077; ray get-auth-token --generate) && ray up -y cluster-aws.yaml"
    said = hosts.run(0, "bash", "-c", up, cwd="localpipe", seconds=500)
    assert said.returncode == 0 and "Ray would start" in said.stdout and "workers would join" in said.stdout, (
        said.stdout
    )
    (head,) = _lent(hosts)
    assert (head["State"]["Name"], head["InstanceType"]) == ("running", "g6.12xlarge")
    assert head["InstanceLifecycle"] == "spot"
    (disk,) = head["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/sda1" and disk["Ebs"]["DeleteOnTermination"]
    assert head["IamInstanceProfile"]["Arn"].endswith("/ray-autoscaler-v1")
    assert (hosts.home(1) / "localpipe" / "cluster-aws.yaml").is_file()
    assert (hosts.home(1) / ".ray" / "auth_token").read_text() == (hosts.home(0) / ".ray" / "auth_token").read_text()
    down = hosts.run(0, "launch", "down", "cluster-aws.yaml", cwd="localpipe", seconds=300)
    assert down.returncode == 0 and "cluster-aws.yaml is down" in down.stdout, down.stdout
    assert [one["State"]["Name"] for one in _lent(hosts)] == ["terminated"]
    assert not list(hosts.home(1).glob("*.pem"))


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's way to an AWS that lends nothing yet; `launch` is typed in tmp_path."""
    boto3 = importlib.import_module("boto3")  # missing where these are skipped

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    given |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "cluster-aws.yaml", tmp_path)
    with (tmp_path / "moto.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | _CHECKS)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, (tmp_path / "moto.log").read_text()
            time.sleep(0.1)
        yield boto3.client("ec2", _REGION)
    finally:
        server.terminate()
        server.wait()


def _typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *arguments]
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=os.environ | paths, check=False, capture_output=True, text=True)


def test_without_a_head_it_is_said_in_a_line_and_down_gives_back_the_workers(aws: Any, tmp_path: Path) -> None:
    """Symptoms: Ray's log, with a traceback, on stdout; and with the head taken away, a worker went on costing."""
    run = _typed(tmp_path, "cff-vit", "--cluster", "cluster-aws.yaml")
    said = "error: cluster-aws.yaml: has no head now. `ray up cluster-aws.yaml` starts it.\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", said)
    tags = {"ray-cluster-name": "localpipe", "ray-node-type": "worker", "ray-user-node-type": "gpu-worker"}
    named = {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
    aws.run_instances(
        ImageId=aws.describe_images()["Images"][0]["ImageId"],
        KeyName=aws.describe_key_pairs()["KeyPairs"][0]["KeyName"],  # Ray's, of a moment ago
        InstanceType="g6.12xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[named],
    )
    down = _typed(tmp_path, "down", "cluster-aws.yaml")
    assert (down.returncode, down.stderr) == (0, "") and down.stdout.endswith("cluster-aws.yaml is down\n")
    ((lent,),) = [reservation["Instances"] for reservation in aws.describe_instances()["Reservations"]]
    assert lent["State"]["Name"] == "terminated"


def test_without_credentials_or_with_wrong_ones_it_is_said(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_out = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"  # from now on it looks at who asks
    asked = urllib.request.Request(watch_out, data=b"0", headers={"Content-Type": "text/plain"})  # noqa: S310
    urllib.request.urlopen(asked).close()  # noqa: S310 (the server of this test)
    wrong = _typed(tmp_path, "attach", "cluster-aws.yaml")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    first, *_, last = wrong.stderr.splitlines()
    assert first == "error: cluster-aws.yaml: the cloud refuses."
    assert last.endswith("The security token included in the request is invalid.")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for command in ("down", "attach"):
        done = _typed(tmp_path, command, "cluster-aws.yaml")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: cluster-aws.yaml: Unable to locate credentials.\n"
