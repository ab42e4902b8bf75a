#!/usr/bin/env python3
"""A driver for hsup: dynos are plain processes that die with it. docs/driver-authors.md tells why it is as it is."""
import asyncio, json, os, pathlib, re, shutil, signal, subprocess, time, uuid
from urllib.parse import unquote, urlsplit

from hsup_driver import BAD, MISSING, SHIM, USED, WRONG_STATE, exit_of, fifos, pb, refuse, require, serve

INSTANCE = uuid.uuid4().hex
DIRECTORY = "dir:"  # An artifact is a directory to run in: this, and its path.


class Dyno:
    def __init__(self, request, directory, state):
        self.request, self.started, self.status = request, int(time.time() * 1000), None
        self.is_stopping, self.gone = False, asyncio.Event()
        self.exit_file = pathlib.Path(state, request.dyno_id, "exit.json")
        words = [SHIM, "--die-with-parent", "--state", state, "--id", request.dyno_id, "--", *request.argv]
        try:
            with fifos(request.io_dir) as (stdin, stdout, stderr):
                self.shim = subprocess.Popen(words, cwd=directory, env=dict(request.env), start_new_session=True,
                                             stdin=stdin, stdout=stdout, stderr=stderr)
        except OSError as error:
            refuse(BAD, f"failed to start: {error}")

    async def follow(self):
        await exit_of(self.shim)
        try:
            end = json.loads(self.exit_file.read_text())
            how = {"code": end["code"]} if "code" in end else {"signal": signal.Signals(end["signal"]).name}
        except (OSError, ValueError) as error:
            end, how = {}, {"lost": f"hsup-shim did not say how it ended: {error}"}
        self.status = pb.ExitStatus(exited_at_unix_ms=end.get("exited_at_unix_ms", 0), **how)
        self.gone.set()

    def signal(self, name):
        if not self.gone.is_set():  # SIGPWR has hsup-shim kill every process of the dyno.
            self.shim.send_signal(signal.SIGPWR if name == "SIGKILL" else signal.Signals[name])

    def to_wire(self):
        own, over = self.request, self.gone.is_set()
        state = pb.STATE_EXITED if over else pb.STATE_STOPPING if self.is_stopping else pb.STATE_RUNNING
        return pb.Dyno(dyno_id=own.dyno_id, supervisor_id=own.supervisor_id, app=own.app, release=own.release,
                       process_type=own.process_type, process_number=own.process_number, state=state,
                       started_at_unix_ms=self.started, status=self.status)


class Driver:
    def __init__(self, state):
        self.state, self.dynos, self.removed, self.left_at = state, {}, {}, {}

    async def GetInfo(self, request, connection):
        return pb.GetInfoResponse(name="com.example.python", version="1", instance_id=INSTANCE, ready=True,
                                  capabilities=[pb.CAPABILITY_STDIO_FIFO], durability=pb.DURABILITY_NONE)

    async def Build(self, request, connection):
        release, url = request.release, urlsplit(request.release.slug_url)
        directory = unquote(url.path) or "/"
        require(request.HasField("release") and not request.options, BAD, "a release is needed, and no options")
        require(re.fullmatch("(SHA256:[0-9a-fA-F]{64})?", release.slug_checksum), BAD, "slug_checksum is malformed")
        require(url.scheme in ("", "file") and os.path.isdir(directory) and not release.image, BAD,
                "this driver runs directories: slug_url must be file://DIR/")
        return pb.BuildResponse(artifact=DIRECTORY + directory)

    async def Start(self, request, connection):
        connection.add(request.supervisor_id)
        words, old = [*request.argv, *request.env, *request.env.values()], self.dynos.get(request.dyno_id)
        self.removed = {key: at for key, at in self.removed.items() if at > time.monotonic() - 600}
        require(re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", request.dyno_id), BAD, "dyno_id is malformed")
        require(request.supervisor_id and request.argv and request.artifact, BAD, "a field is missing")
        require(len(request.app + request.process_type + request.supervisor_id) < 512, BAD, "names are too long")
        require("\0" not in "".join(words) and all(name and "=" not in name for name in request.env), BAD,
                "no process can have this argv or env")
        require(not (request.tty or request.binds or request.options or request.HasField("limits")), BAD,
                "this driver has no terminals, binds, options or limits")
        require(request.dyno_id not in self.removed, WRONG_STATE, "this dyno was removed")
        require(not old or old.request == request, USED, "dyno_id was used otherwise")
        if not old:
            directory = request.artifact.removeprefix(DIRECTORY)
            require(directory != request.artifact and os.path.isdir(directory), MISSING, "artifact is not there")
            dyno = self.dynos[request.dyno_id] = Dyno(request, directory, self.state)
            asyncio.ensure_future(dyno.follow())
        return pb.StartResponse()

    async def Stop(self, request, connection):
        name, dyno = request.signal or "SIGTERM", self.dynos.get(request.dyno_id)
        require(request.dyno_id and name in signal.Signals.__members__, BAD, "no dyno_id, or no such signal")
        if dyno and not dyno.gone.is_set():
            if not dyno.is_stopping and not request.force:
                dyno.signal(name)
            dyno.is_stopping = True
            grace = 0 if request.force else request.grace_ms / 1000 or 30
            asyncio.get_running_loop().call_later(grace, dyno.signal, "SIGKILL")  # Of several the first counts.
            await dyno.gone.wait()
        return pb.StopResponse()

    async def Wait(self, request, connection):
        dyno = self.dynos.get(request.dyno_id) or refuse(MISSING, "there is no such dyno")
        await asyncio.wait([asyncio.ensure_future(dyno.gone.wait())], timeout=request.timeout_ms / 1000 or None)
        return pb.WaitResponse(status=dyno.status)

    async def IPInfo(self, request, connection):
        dyno = self.dynos.get(request.dyno_id) or refuse(MISSING, "there is no such dyno")
        require(not dyno.gone.is_set(), WRONG_STATE, "the dyno has exited")
        port = dyno.request.env.get("PORT") or refuse(WRONG_STATE, "the dyno has no PORT")
        return pb.IPInfoResponse(ip="127.0.0.1", port=int(port))

    async def List(self, request, connection):
        connection.add(request.supervisor_id)
        wanted = ("", None, request.supervisor_id) if request.supervisor_id else None
        return pb.ListResponse(dynos=[dyno.to_wire() for dyno in self.dynos.values()
                                      if request.supervisor_id in ("", dyno.request.supervisor_id)])

    async def Remove(self, request, connection):
        require(request.dyno_id or request.artifact, BAD, "what is to be removed is missing")
        if request.artifact:
            running = (dyno.request.artifact for dyno in self.dynos.values() if not dyno.gone.is_set())
            require(request.artifact not in running, WRONG_STATE, "the artifact is in use")
            return pb.RemoveResponse()  # The directory is its owner's.
        dyno = self.dynos.get(request.dyno_id)
        require(not dyno or dyno.gone.is_set(), WRONG_STATE, "the dyno is running")
        self.dynos.pop(request.dyno_id, None)
        self.removed[request.dyno_id] = time.monotonic()
        shutil.rmtree(f"{self.state}/{request.dyno_id}", ignore_errors=True)
        return pb.RemoveResponse()

    def disconnected(self, is_connected, supervisor_ids):
        for dyno in self.dynos.values():
            if dyno.request.linger_ms and dyno.request.supervisor_id in supervisor_ids:
                self.left_at[dyno.request.supervisor_id] = time.monotonic()
                linger = dyno.request.linger_ms / 1000
                asyncio.get_running_loop().call_later(linger, self.end_linger, dyno, linger, is_connected)

    def end_linger(self, dyno, linger, is_connected):
        own = dyno.request.supervisor_id
        if not is_connected(own) and time.monotonic() >= self.left_at[own] + linger:
            asyncio.ensure_future(self.Stop(pb.StopRequest(dyno_id=dyno.request.dyno_id), set()))

    def is_busy(self):
        return any(not dyno.gone.is_set() for dyno in self.dynos.values())

    async def end(self):
        for dyno in self.dynos.values():
            dyno.signal("SIGKILL")
        for dyno in self.dynos.values():
            await dyno.gone.wait()


if __name__ == "__main__":
    asyncio.run(serve(Driver))
