"""What every driver in Python needs: the socket, who may use it, refusals, FIFOs, and who is still connected."""
import asyncio, contextlib, itertools, os, pathlib, shutil, signal, socket, stat, struct, subprocess, sys

import grpc
from google.protobuf.message import DecodeError

HERE = pathlib.Path(__file__).resolve().parent
CLONE = HERE.joinpath("../../..").resolve()  # of hsup, if this is in one
sys.path[1:1] = [str(HERE), str(CLONE / "proto/proto")]  # where hsup/driver/v1/driver.proto is
pb = grpc.protos("hsup/driver/v1/driver.proto")
SERVICE, MIB = pb.DESCRIPTOR.services_by_name["DynoDriver"], 1 << 20
BAD, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
USED, WRONG_STATE = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION
# It comes with hsup; in a clone it may be where cargo builds.
PLACES = [os.environ["PATH"], *(str(CLONE / f"target/{kind}") for kind in ("release", "debug"))]
SHIM = shutil.which("hsup-shim", path=":".join(PLACES)) or sys.exit("hsup-shim is not on PATH; it comes with hsup")


class Refused(Exception):
    """A code, and a sentence for people. The call has changed nothing."""


def refuse(code, sentence):
    raise Refused(code, sentence)


def require(condition, code, sentence):
    if not condition:
        refuse(code, sentence)


@contextlib.contextmanager
def fifos(folder):
    """Standard input, output and error of a dyno from its io_dir, open for as long as it takes to start it."""
    with contextlib.ExitStack() as opened:
        def take(name, mode):
            fd = os.open(os.path.join(folder, name), mode | os.O_NONBLOCK | os.O_NOFOLLOW)
            opened.callback(os.close, fd)
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                raise OSError(f"{name} in io_dir is no FIFO")
            os.set_blocking(fd, True)
            return fd

        has_input = os.path.lexists(os.path.join(folder, "stdin"))
        stdin = take("stdin", os.O_RDONLY) if has_input else subprocess.DEVNULL
        # For reading, too: so no open waits for the other side, and no dyno gets SIGPIPE while hsup restarts.
        yield stdin, take("stdout", os.O_RDWR), take("stderr", os.O_RDWR)


async def exit_of(process):
    """Waits for a child without a thread: a thousand dynos would use up any pool."""
    ended, pidfd, loop = asyncio.Event(), os.pidfd_open(process.pid), asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    await ended.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)
    process.wait()


def handler(method, connection):
    """Serves one call. gRPC would answer INTERNAL to bytes that it cannot decode, so they are decoded here."""
    call = SERVICE.methods_by_name[method.__name__]
    request_type = getattr(pb, call.input_type.name)

    async def answer(raw, context):
        try:
            require(len(raw) <= 4 * MIB, BAD, "a message may have 4 MiB")
            # Shielded: gRPC cancels the call of a caller that hangs up, and that must change nothing.
            return await asyncio.shield(asyncio.ensure_future(method(request_type.FromString(raw), connection)))
        except DecodeError:
            await context.abort(BAD, "the message cannot be decoded")
        except Refused as refused:
            await context.abort(*refused.args)

    async def stream(raw, context):
        yield await answer(raw, context)

    if call.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, None, lambda message: message.SerializeToString())
    return grpc.unary_unary_rpc_method_handler(answer, None, lambda message: message.SerializeToString())


async def pump(reader, writer):
    try:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass  # The other side is gone.


class Server:
    """Accepts by itself and passes the bytes on, for gRPC in Python takes over no listening descriptor, tells of no
    caller which user it is, and does not say when a connection has ended."""

    def __init__(self, driver, folder):
        self.driver, self.folder, self.numbers, self.connections = driver, folder, itertools.count(), {}
        self.methods = [getattr(driver, name) for name in SERVICE.methods_by_name if hasattr(driver, name)]

    def is_connected(self, supervisor_id):
        return any(supervisor_id in connection for connection in self.connections.values())

    async def accept(self, reader, writer):
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", peer)[1] not in (0, os.getuid()):
            return writer.close()
        connection, path = set(), f"{self.folder}/.{next(self.numbers)}"
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 * MIB)])
        handlers = {method.__name__: handler(method, connection) for method in self.methods}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)])
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        self.connections[path] = connection
        inside, to_inside = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, to_inside), pump(inside, writer))
        for end in (writer, to_inside):
            end.close()
        del self.connections[path]
        self.driver.disconnected(self.is_connected, connection)
        await server.stop(None)


def listen():
    """The descriptor that was handed down, or a socket at HSUP_DRIVER_SOCKET that is its owner's from the beginning."""
    own = str(os.getpid())
    if os.environ.get("LISTEN_FDS", "0") != "0" and os.environ.get("LISTEN_PID", own) == own:
        return socket.socket(fileno=3)
    path = os.environ.get("HSUP_DRIVER_SOCKET") or sys.exit("HSUP_DRIVER_SOCKET names no socket")
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            sys.exit(f"{path} is there and no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                sys.exit(f"{path} is served by another process")
        os.unlink(path)
    listener, mask = socket.socket(socket.AF_UNIX), os.umask(0o177)
    listener.bind(path)
    os.umask(mask)
    listener.listen(128)
    return listener


async def serve(make_driver):
    """Until SIGTERM, or until nobody needs it. The driver has the protocol's calls, and a folder beside the socket."""
    listener, parent, ended = listen(), os.getppid(), asyncio.Event()
    path = listener.getsockname()
    folder = path.removesuffix(".sock") + ".d"
    shutil.rmtree(folder, ignore_errors=True)  # A driver that was killed has left it; its dynos died with it.
    os.mkdir(folder, 0o700)
    driver = make_driver(folder)
    server = Server(driver, folder)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    accepting = await asyncio.start_unix_server(server.accept, sock=listener)
    while not ended.is_set():
        await asyncio.wait([asyncio.ensure_future(ended.wait())], timeout=5)
        if os.getppid() != parent and not server.connections and not driver.is_busy():
            break
    accepting.close()
    os.path.exists(path) and os.unlink(path)
    await driver.end()
    shutil.rmtree(folder)
    os._exit(0)  # Waits may be open, and nobody is to wait for them.
