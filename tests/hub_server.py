"""A small server with the calls of the Hugging Face Hub that models need, in memory.

Files of weights are uploaded and stored as Git LFS does, others within the commit.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_secret"  # of the only user
NUMBERS = itertools.count()  # of commits
LICENSES = ("unknown", "mit", "apache-2.0", "cc-by-4.0")


class Repository:
    """Branches, which are names of commits, and commits, which are files by name."""

    def __init__(self, private=False, files=None):
        self.private, self.gated = private, False
        self.branches, self.commits, self.messages = {}, {}, []
        self.commit("main", files or {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def commit(self, branch, files, message):
        sha = hashlib.sha1(str(next(NUMBERS)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def files(self, revision="main"):
        return self.commits.get(self.branches.get(revision, revision))


class Hub:
    """The repositories, what was asked of the server, and how it fails."""

    def __init__(self):
        self.repositories, self.large, self.requests = {}, {}, []
        self.refused_commits = itertools.repeat(None)  # a status for each, or None

    def requested(self, name):
        return [path for method, path in self.requests if path.endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.user = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if "Authorization" in self.headers and not self.user and not path.startswith("/large/"):
            return self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        for pattern, call in CALLS:
            match = re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}")
            if match:
                return call(self, **match.groupdict())
        return self.answer(404)

    def answer(self, status=200, content=b"", **settings):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **settings.get("headers", {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def found(self, repo, revision="main", write=False):
        """Returns a repository, or None after an answer that says why not."""
        repository = self.hub.repositories.get(repo)
        if (write and not self.user) or repository is None or (repository.private and not self.user):
            status = 404 if self.user else 401
            self.answer(status, headers={"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        elif repository.files(revision) is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def info(self, repo, revision="main"):
        if repository := self.found(repo, revision):
            files = repository.files(revision)
            self.answer(
                content={
                    "id": repo,
                    "sha": repository.branches.get(revision, revision),
                    "private": repository.private,
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": [],
                }
            )

    def tree(self, repo, revision):
        if repository := self.found(repo, revision):
            files = repository.files(revision).items()
            self.answer(content=[{"type": "file", "path": n, "size": len(c), "oid": sha256(c)} for n, c in files])

    def resolve(self, repo, revision, name):
        if repository := self.found(repo, revision):
            headers = {"X-Repo-Commit": repository.branches.get(revision, revision)}
            content = repository.files(revision).get(name)
            if content is None:
                self.answer(404, headers={"X-Error-Code": "EntryNotFound", **headers})
            else:
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
                headers |= {"ETag": f'"{sha256(content)}"', "X-Linked-Size": len(content)}
                headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
                self.answer(206 if start else 200, content[start:], headers=headers)

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.user:
            self.answer(401)
        elif repo in self.hub.repositories:
            self.answer(409, {"url": f"/{repo}"})
        else:
            self.hub.repositories[repo] = Repository(asked.get("private") or asked.get("visibility") == "private")
            self.answer(content={"url": f"http://{self.headers['Host']}/{repo}"})

    def branch(self, repo, branch):
        if repository := self.found(repo, write=True):
            if branch in repository.branches:
                return self.answer(409)
            repository.branches[branch] = repository.branches["main"]
            self.answer(content={})

    def validate(self):
        text = json.loads(self.body)["content"]
        metadata = yaml.safe_load(text.partition("---\n")[2].partition("\n---\n")[0])
        if metadata is not None and metadata.get("license") not in LICENSES:
            return self.answer(400, {"errors": [{"message": '"license" must be one of the list'}], "warnings": []})
        self.answer(content={"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        if self.found(repo, revision, write=True):
            names = [file["path"] for file in json.loads(self.body)["files"]]
            mode = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode[name], "shouldIgnore": False, "oid": None} for name in names]
            self.answer(content={"files": files})

    def batch(self, repo):
        if self.found(repo, write=True):
            objects = [
                {**asked, "actions": {"upload": {"href": f"http://{self.headers['Host']}/large/{asked['oid']}"}}}
                for asked in json.loads(self.body)["objects"]
            ]
            self.answer(content={"transfer": "basic", "objects": objects})

    def upload(self, oid):
        if sha256(self.body) != oid:
            return self.answer(400)
        self.hub.large[oid] = self.body
        self.answer()

    def commit(self, repo, branch):
        if repository := self.found(repo, branch, write=True):
            header, *operations = map(json.loads, self.body.splitlines())
            refused = next(self.hub.refused_commits)
            if header["value"]["parentCommit"] != repository.branches[branch]:
                refused = 412
            if refused is not None:
                return self.answer(refused, {"error": "A commit has happened since."})
            files = dict(repository.files(branch))
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "deletedFile":
                    del files[value["path"]]
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                else:
                    files[value["path"]] = base64.b64decode(value["content"])
            sha = repository.commit(branch, files, header["value"]["summary"])
            self.answer(content={"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{sha}", "commitOid": sha})


REPO = r"(?P<repo>[^/]+/[^/]+)"
CALLS = (
    (rf"GET /api/models/{REPO}", Handler.info),
    (rf"GET /api/models/{REPO}/revision/(?P<revision>.+)", Handler.info),
    (rf"GET /api/models/{REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    (rf"GET /{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
    ("POST /api/repos/create", Handler.create),
    (rf"POST /api/models/{REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT /large/(?P<oid>.+)", Handler.upload),
    (rf"POST /api/models/{REPO}/commit/(?P<branch>.+)", Handler.commit),
)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def serve():
    """Yields (Hub, address) of a server that runs in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Connected", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
