"""Speaks enough of Google Cloud Storage's XML interface for tests of our client,
in front of an S3 server that takes anonymous requests.

    gcs_shim.py LISTEN_PORT S3_PORT

The two protocols differ where it matters to us in conditions and names of headers:

    x-goog-if-generation-match: 0    If-None-Match: *
    x-goog-if-generation-match: N    If-Match: the ETag that had generation N here
    x-goog-copy-source               x-amz-copy-source
    x-goog-meta-NAME                 x-amz-meta-NAME
    (answer) x-goog-generation       a number of ours for the ETag of the answer

It checks no credentials. Objects of equal bytes have equal ETags, so an update
from equal to equal bytes keeps its generation; real generations never repeat.
"""

import http.client
import http.server
import itertools
import sys
import threading

GENERATION_FIRST = 1_700_000_000_000_000
GOOGLE_TO_AMAZON = {
    "x-goog-copy-source": "x-amz-copy-source",
    "x-goog-meta-": "x-amz-meta-",
}
# Of one connection, not of the message; or ours to say anew.
NOT_PASSED_ON = {"authorization", "connection", "content-length", "host", "transfer-encoding"}


class Generations:
    """The generation of what lies under each path, by ETag."""

    def __init__(self):
        self.lock = threading.Lock()
        self.numbers = itertools.count(GENERATION_FIRST)
        self.current = {}  # path: (etag, generation)

    def of(self, path, etag, written):
        with self.lock:
            known = self.current.get(path)
            if written or known is None or known[0] != etag:
                known = (etag, str(next(self.numbers)))
                self.current[path] = known
            return known[1]

    def etag(self, path, generation):
        with self.lock:
            etag, current = self.current.get(path, ("", ""))
            # An ETag that nothing has: the condition must fail, not be dropped.
            return etag if current == generation else '"none"'


class Shim(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    generations = Generations()
    backend = 0

    def log_message(self, *_):
        pass

    def translated(self, path):
        headers = {}
        for name, value in self.headers.items():
            name = name.lower()
            if name in NOT_PASSED_ON:
                continue
            if name == "x-goog-if-generation-match":
                if value == "0":
                    headers["If-None-Match"] = "*"
                else:
                    headers["If-Match"] = self.generations.etag(path, value)
                continue
            for google, amazon in GOOGLE_TO_AMAZON.items():
                if name.startswith(google):
                    name = amazon + name[len(google):]
            headers[name] = value
        return headers

    def handle_request(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not body and self.command not in ("PUT", "POST"):
            body = None
        server = http.client.HTTPConnection("127.0.0.1", self.backend, timeout=60)
        try:
            server.request(self.command, self.path, body, self.translated(path))
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in NOT_PASSED_ON:
                continue
            if name.lower().startswith("x-amz-meta-"):
                name = "x-goog-meta-" + name[len("x-amz-meta-"):]
            self.send_header(name, value)
        etag = answer.getheader("ETag")
        # A part has an ETag too, but is no object yet.
        if etag and answer.status < 300 and "uploadId" not in query:
            written = self.command == "PUT"
            self.send_header("x-goog-generation", self.generations.of(path, etag, written))
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = handle_request


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # Sixteen creators come at once, each on a connection of its own.
    request_queue_size = 128


if __name__ == "__main__":
    listen, Shim.backend = int(sys.argv[1]), int(sys.argv[2])
    Server(("127.0.0.1", listen), Shim).serve_forever()
