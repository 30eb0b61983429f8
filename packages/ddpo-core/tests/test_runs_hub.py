"""Pushing a folder: the real client of the hub talks to a small server on this machine."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def do_POST(self):
        said = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, said))
        sent = json.loads(said) if self.path.endswith(("create", "main")) and "commit" not in self.path else {}
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in sent.get("files", [])
        ]
        address, oid = f"http://{self.headers['Host']}/me/mine", "0" * 40
        answer = {"url": address, "id": "me/mine", "files": files, "errors": [], "warnings": [],
                  "commitUrl": f"{address}/commit/{oid}", "commitOid": oid}  # fmt: skip
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_a_folder_is_pushed_to_the_hub(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("# mine\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    told = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_nobody", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    program = (
        "import sys\nfrom ddpo_core import DDPOError\nfrom ddpo_core.runs.hub import push_to_hub\n"
        "print(push_to_hub(sys.argv[1], 'me/mine', private=True))\n"
        "try:\n    push_to_hub(sys.argv[1], 'not a name', private=True)\n"
        "except DDPOError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "mine")]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("me/mine")
    assert "cannot be pushed to 'not a name': HFValidationError" in second
    paths = [path for path, _ in server.asked]
    assert paths[0] == "/api/repos/create"
    made = json.loads(server.asked[0][1])
    assert made.get("visibility") == "private" or made.get("private") is True
    (commit,) = [said for path, said in server.asked if "/commit/" in path]
    assert [json.loads(line)["key"] for line in commit.splitlines()] == ["header", "file"]
