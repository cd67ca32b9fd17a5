"""The emulator of Google Cloud Storage, with three answers of the real service that it lacks.

It writes an object although there is one, if a request allows that for a new one only
(ifGenerationMatch=0), and it knows no permissions. Here, a bucket called "denied" refuses all.
It also drops the last byte of an object if this is a carriage return, because gcsfs ends the lines
of a request with a line feed alone.

python -m tests.gcs_server PORT BUCKET
"""

import sys
from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def exists(storage, bucket, name):
    try:
        return bool(storage.get_file_obj(bucket, name))
    except NotFound:
        return False


def real(handler):
    """Returns a handler of requests that first refuses what the real service refuses."""

    def handle(request, response, storage, *arguments, **settings):
        bucket = request.params["bucket_name"]
        if bucket == "denied":
            response.status = HTTPStatus.FORBIDDEN
            response.json({"error": {"code": 403, "message": "The caller has no access to storage.objects."}})
        elif request.query.get("ifGenerationMatch") == ["0"] and exists(storage, bucket, request.data["meta"]["name"]):
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            handler(request, response, storage, *arguments, **settings)

    return handle


objects.insert, objects.ls, objects.get = real(objects.insert), real(objects.ls), real(objects.get)

from gcp_storage_emulator import server  # noqa: E402, it collects the handlers when it is imported

BOUNDARY = b"\n--==0=="  # of gcsfs
decoded = server._decode_raw_data


def with_whole_line_ends(*arguments):
    content = decoded(*arguments)
    return content and content.replace(BOUNDARY, b"\r" + BOUNDARY)


server._decode_raw_data = with_whole_line_ends

if __name__ == "__main__":
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
