"""Makes a container on an Azure Blob server: azurite starts without any.

    AZURE_STORAGE_ACCOUNT_NAME=... AZURE_STORAGE_ACCOUNT_KEY=... \\
        azure_container.py PORT CONTAINER
"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import os
import sys

port, container = sys.argv[1:]
account = os.environ["AZURE_STORAGE_ACCOUNT_NAME"]
key = base64.b64decode(os.environ["AZURE_STORAGE_ACCOUNT_KEY"])

path = f"/{account}/{container}"
headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
# The shared-key scheme: verb, eleven standard headers (all empty here), our
# headers, and the resource with its query.
signed = "PUT" + "\n" * 12
signed += "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
signed += f"/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
headers["Authorization"] = f"SharedKey {account}:{signature}"
headers["Content-Length"] = "0"

server = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
server.request("PUT", path + "?restype=container", headers=headers)
answer = server.getresponse()
if answer.status not in (201, 409):
    sys.exit(f"{answer.status}: {answer.read().decode()}")
