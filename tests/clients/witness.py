"""`portcullis witness`, on a folder of its own."""

import hashlib
import json
import signal
import subprocess
import urllib.error
import urllib.request

import gate as gates
from tlog import Vkey


class Witness:
    """The program as it is shipped; started again, it is where it was."""

    def __init__(self, folder, *logs, name="w.test/w1"):
        folder.mkdir(exist_ok=True)
        self.folder, self.name, self.process = folder, name, None
        if not (folder / "w.pem").exists():
            gates.run("witness", "key", "--name", name, "--out", folder / "w.pem")
        tables = "".join(f'[[log]]\norigin = "{origin}"\nkeys = ["{vkey}"]\n' for origin, vkey in logs)
        settings = f'listen = "127.0.0.1:{gates.free_port()}"\ntls = "off"\nname = "{name}"\nkey = "w.pem"\ndirectory = "state"\n'
        (folder / "witness.toml").write_text(settings + tables)
        self.start()

    def start(self):
        command = [gates.binary(), "witness", "--config", self.folder / "witness.toml", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        told = json.loads(self.process.stdout.readline())
        self.url, self.keys = told["url"], told["keys"]
        self.vkeys = [Vkey(key) for key in self.keys]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        self.process.terminate()
        assert self.process.wait(10) == 0

    def ask(self, path, body=None):
        """Status, content type and text."""
        request = urllib.request.Request(self.url + path, data=body and body.encode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.headers["Content-Type"], answer.read().decode()

    def add(self, body):
        return self.ask("/add-checkpoint", body)

    def latest(self, origin):
        return self.ask(f"/{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint")
