"""Servers of Amazon S3 and Google Cloud Storage on this machine, for tests of runs in buckets."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from diffae_jax.runtime import buckets, files
from diffae_jax.runtime.buckets import BucketPath
from tests.environment import ROOT
from tests.runs import free_address

BUCKET = "tests"


class Store:
    """A server with one bucket, and the environment of processes that use it."""

    def __init__(self, scheme):
        self.scheme = scheme
        address = free_address().replace("localhost", "127.0.0.1")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        port, self.url = address.rpartition(":")[2], f"http://{address}"
        commands = {
            "s3": ("-m", "moto.server", "-H", "127.0.0.1", "-p", port),
            "gs": ("-m", "tests.gcs_server", port, BUCKET),
        }
        self.process = subprocess.Popen(
            [sys.executable, *commands[scheme]], cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.settings = {
            "s3": {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
            "gs": {"STORAGE_EMULATOR_HOST": self.url},
        }[scheme]
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        if scheme == "s3":
            self.request("PUT", f"/{BUCKET}")

    @property
    def output(self):
        self.log.seek(0)
        return self.log.read().decode()

    def _answers(self):
        try:
            self.request("GET", "/")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def request(self, method, path, content=None):
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()

    def path(self, name):
        return BucketPath(f"{self.scheme}://{BUCKET}/{name}")

    @contextlib.contextmanager
    def used_here(self):
        """Lets this process use the server."""
        before = {name: os.environ.get(name) for name in self.settings}
        os.environ.update(self.settings)
        buckets._file_system.cache_clear()
        files._copied_once.cache_clear()
        try:
            yield self
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            buckets._file_system.cache_clear()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
