"""Runs a command on a spot instance of AWS and sends it SIGTERM when the instance is about to be taken away.

    python tools/on_spot.py launch cff-vit --mirror s3://bucket/runs

AWS says so two minutes before, in the instance's metadata. Until the instance shuts down no process gets a signal, and
Ray does not ask. `launch` saves a checkpoint at SIGTERM. The instance's disk goes with it, so that the run has to be
copied elsewhere as well.
Ctrl-C, SIGTERM and SIGHUP reach the command as if it ran alone, and its exit status is passed on.
Source: AWS, "Spot Instance interruption notices" and "Instance metadata", version 2.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

ADDRESS = "http://169.254.169.254"
"""Where an instance asks for its metadata; $AWS_EC2_METADATA_SERVICE_ENDPOINT, as in AWS's own tools, is another."""

_LOOK = 5.0  # seconds between two looks, as AWS recommends
_PATIENCE = 2.0  # seconds for an answer


def notice(address: str) -> str | None:
    """What AWS says that it will do with this instance, and when, as JSON; None where it will do nothing.

    Raises:
        OSError: nobody answers, or something else than a metadata service.
    """
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(urllib.request.Request(f"{address}/latest/api/token", method="PUT", headers=wanted))  # noqa: S310
    ask = urllib.request.Request(  # noqa: S310 (an address that the machine's owner sets)
        f"{address}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        return _ask(ask)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def _ask(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def main() -> int:
    """Runs the command line. Returns the command's exit status, 128 and the signal's number where one ended it."""
    if len(sys.argv) < 2:
        print("error: give a command, as in: python tools/on_spot.py launch cff-vit", file=sys.stderr)
        return 2
    address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", ADDRESS).rstrip("/")
    try:
        process = subprocess.Popen(sys.argv[1:])  # noqa: S603 (what was typed)
    except OSError as error:
        print(f"error: {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
    status = _watch(process, address)
    return status if status >= 0 else 128 - status


def _watch(process: subprocess.Popen[bytes], address: str) -> int:
    looking, warned = True, False
    while True:
        try:
            return process.wait(_LOOK if looking else None)
        except subprocess.TimeoutExpired:
            pass
        try:
            said = notice(address)
        except OSError as error:
            if not warned:
                print(f"warning: {address} tells nothing of this instance ({error}); asking on", file=sys.stderr)
            warned = True
            continue
        if said is not None:
            print(f"AWS takes this instance away: {said}. Stopping the command.", file=sys.stderr, flush=True)
            process.terminate()
            looking = False


if __name__ == "__main__":
    sys.exit(main())
