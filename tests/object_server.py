"""An S3 server on this machine, moto's, for tests."""

from __future__ import annotations

import logging
import os
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "bucket"


@contextmanager
def running() -> Iterator[str]:
    """Run the server, which AWS's variables of the environment then name; yield the address of a bucket."""
    pytest.importorskip("s3fs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moto imports much
        server_type = pytest.importorskip("moto.server").ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_type("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        forget()
        urllib.request.urlopen(
            f"http://{host}:{port}/moto-api/reset", b""
        ).close()  # servers of one process share their state
        filesystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        forget()
        server.stop()


def filesystem():
    """Return fsspec's file system of the server."""
    import fsspec

    return fsspec.filesystem("s3", use_listings_cache=False)


def forget() -> None:
    """Close connections: another server or other credentials are used from now on."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
