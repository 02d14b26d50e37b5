"""MLflow's dashboard on the store that the sweeps write to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from rich.console import Console

from algorithms.errors import UserError
from orchestrator.deployment import Deployment

# MLflow opens on its side for language models unless told otherwise.
PAGE = "#/experiments?workflowType=machine_learning"


def serve(deployment: Deployment, host: str, port: int, console: Console) -> int:
    """Serve the embedded store until interrupted; of a remote server, print the address.

    Raises:
        UserError: nothing has been recorded yet, or the port is taken.
    """
    if deployment.tracking_uri.startswith(("http://", "https://")):
        console.print(f"dashboard: {deployment.tracking_uri}", soft_wrap=True)
        return 0
    if not deployment.storage.path("").is_dir():
        raise UserError(f"storage {deployment.storage} does not exist: run a sweep first")
    _refuse_taken(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", deployment.tracking_uri]
    command += ["--artifacts-destination", str(deployment.artifacts)]
    # One reader at a time: a second worker would take as much memory again.
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # Without job execution the server needs a fifth of the memory.
    # What MLflow's libraries deprecate among each other is no news for its reader.
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    console.print(f"dashboard: http://{host}:{port}/{PAGE} (Ctrl-C stops it)", soft_wrap=True)
    # A session of its own: MLflow's workers do not follow it when it ends, their group does.
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - ours
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _refuse_taken(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve on {host}:{port} ({error}): choose another --port") from None
