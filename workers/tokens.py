"""The token that a Ray cluster asks for: whether this process has the right one, and whether others can read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import grpc
from ray._private import services
from ray._private.authentication import authentication_token_setup as setup
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]  # it has no types
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from pipeline.errors import ResourcesError

_TIMEOUT = 5.0  # seconds for an answer
_CLIENT_HELLO = "/ray.rpc.RayletDriver/ClusterInfo"
_HOW = (
    "Set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token or in RAY_AUTH_TOKEN; "
    "`ray get-auth-token` prints it on the head."
)


def check_token(address: str) -> None:
    """Asks the cluster whether it takes this process's token. Ray itself would try for minutes.

    Args:
        address: host and port of the cluster's head, or auto: the one that Ray finds on this machine; or ray://HOST:PORT,
            the server that Ray's client talks to.

    Raises:
        ResourcesError: it does not.
    """
    is_client = address.startswith("ray://")
    if "://" in address and not is_client:
        return
    # As Ray itself does, where a token is here and nothing is said of its use.
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if address == "auto":
        address = services.canonicalize_bootstrap_address(address) or address
    try:
        setup.ensure_token_if_auth_enabled(create_token_if_missing=False)
        with init_grpc_channel(address.removeprefix("ray://"), GLOBAL_GRPC_OPTIONS) as channel:
            if is_client:  # an empty question: it looks at the token first
                channel.unary_unary(_CLIENT_HELLO)(b"", timeout=_TIMEOUT)
                return
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=_TIMEOUT)
    except AuthenticationError as error:
        raise ResourcesError(f"RAY_AUTH_MODE is token, and there is no token here. {_HOW}") from error
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            given = "this process gives none" if os.environ.get("RAY_AUTH_MODE") != "token" else f"not {_source()}"
            raise ResourcesError(f"The Ray cluster at {address} asks for its token, {given}. {_HOW}") from error


def exposed_token() -> str | None:
    """What is wrong with the token's file, if other users of this machine can read it."""
    path = token_file()
    if path is None or not _others_can_read(path):
        return None
    return (
        f"{path} can be read by other users of this machine, who can run code in the cluster with it. `chmod 600 "
        f"{path}`, then start the cluster with a new token."
    )


def token_file() -> Path | None:
    """The file that Ray takes the token from, if it takes it from one."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expandvars("$HOME/.ray/auth_token"))  # as Ray itself


def _source() -> str:
    path = token_file()
    return "the one in RAY_AUTH_TOKEN" if path is None else f"the one in {path}"


def _others_can_read(path: Path) -> bool:
    """Whether its mode and those of the folders that it lies in let other users reach it."""
    try:
        real = path.resolve(strict=True)
        modes = [folder.stat().st_mode for folder in real.parents]
        mode = real.stat().st_mode
    except OSError:  # it is not there, or somebody else's
        return False
    everybody = mode & stat.S_IROTH and all(one & stat.S_IXOTH for one in modes)
    group = mode & stat.S_IRGRP and all(one & (stat.S_IXGRP | stat.S_IXOTH) for one in modes)
    return bool(everybody or group)
