// What every driver in JavaScript needs: the socket, refusals, FIFOs, and who is still connected.
"use strict";
const fs = require("node:fs");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const REPOSITORY = path.resolve(__dirname, "../../..");
const proto = path.join(REPOSITORY, "proto/proto/hsup/driver/v1/driver.proto");
const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const SERVICE = loader.loadSync(proto, options)["hsup.driver.v1.DynoDriver"];
// It comes with hsup; in a clone it may be where cargo builds.
const places = [...process.env.PATH.split(":"), ...["release", "debug"].map((kind) => `${REPOSITORY}/target/${kind}`)];
const SHIM = places.map((place) => `${place}/hsup-shim`).find((file) => fs.existsSync(file));
const MIB = 1024 * 1024;

/** Throws what a call is refused with. It has changed nothing. */
function refuse(code, details) {
  throw { code, details };
}

function require_(condition, code, details) {
  return condition || refuse(code, details);
}

/** One of a dyno's FIFOs, for as long as it takes to start it; `ignore` for an input that there is none of. */
function fifo(folder, name) {
  const file = path.join(folder, name);
  if (name === "stdin" && !fs.existsSync(file)) return "ignore";
  const { O_RDONLY, O_RDWR, O_NONBLOCK, O_NOFOLLOW } = fs.constants;
  // Output for reading, too: so no open waits for the other side, and no dyno gets SIGPIPE while hsup restarts.
  const fd = fs.openSync(file, (name === "stdin" ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_NOFOLLOW);
  if (fs.fstatSync(fd).isFIFO()) return fd; // Node takes O_NONBLOCK off again in the child.
  fs.closeSync(fd);
  throw new Error(`${name} in io_dir is no FIFO`);
}

/** Serves one call. gRPC would answer INTERNAL to bytes that it cannot decode, so they are decoded here. */
function handler(definition, method, connections) {
  const answer = async (call) => {
    let request;
    require_(call.request.length <= 4 * MIB, grpc.status.INVALID_ARGUMENT, "a message may have 4 MiB");
    try {
      request = definition.requestDeserialize(call.request);
    } catch {
      refuse(grpc.status.INVALID_ARGUMENT, "the message cannot be decoded");
    }
    return method(request, connections.get(call.getPeer()) ?? new Set());
  };
  const known = (error) => (error.details ? error : { code: grpc.status.INTERNAL, details: String(error) });
  if (definition.responseStream) {
    const send = (call, message) => { call.write(message); call.end(); };
    return (call) => answer(call).then((message) => send(call, message), (error) => call.emit("error", known(error)));
  }
  return (call, callback) => answer(call).then((message) => callback(null, message), (error) => callback(known(error)));
}

/** The descriptor that was handed down, or a socket at HSUP_DRIVER_SOCKET that is its owner's from the beginning. */
async function listen(server) {
  const { LISTEN_FDS = "0", LISTEN_PID = String(process.pid), HSUP_DRIVER_SOCKET: file } = process.env;
  if (LISTEN_FDS !== "0" && LISTEN_PID === String(process.pid)) return server.listen({ fd: 3 });
  const fail = (why) => { console.error(why); process.exit(1); };
  if (!file) fail("HSUP_DRIVER_SOCKET names no socket");
  const found = fs.lstatSync(file, { throwIfNoEntry: false });
  if (found && !found.isSocket()) fail(`${file} is there and no socket`);
  const probe = found && net.connect(file);
  const isServed = found && await new Promise((resolve) =>
    probe.on("connect", () => resolve(true)).on("error", () => resolve(false)));
  if (isServed) fail(`${file} is served by another process`);
  if (found) fs.unlinkSync(file);
  const mask = process.umask(0o177);
  server.listen(file, () => process.umask(mask));
}

/** Until SIGTERM, or until nobody needs it. `driver.begin` is given a folder of the driver's own. */
async function serve(driver) {
  const connections = new Map();
  const raw = Object.fromEntries(Object.entries(SERVICE).filter(([name]) => driver.calls[name]).map(([name, call]) =>
    [name, { ...call, requestDeserialize: (bytes) => bytes }]));
  const handlers = Object.entries(raw).map(([name]) => [name, handler(SERVICE[name], driver.calls[name], connections)]);
  const inner = new grpc.Server({ "grpc.max_receive_message_length": 8 * MIB });
  inner.addService(raw, Object.fromEntries(handlers));
  const injector = inner.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  let number = 0;
  // By itself, for gRPC takes over no listening descriptor, and does not say when a connection has ended.
  const server = net.createServer((socket) => {
    const [name, supervisors] = [`connection-${++number}`, new Set()];
    Object.defineProperty(socket, "remoteAddress", { value: name }); // What getPeer answers.
    connections.set(name, supervisors);
    socket.on("close", () => {
      connections.delete(name);
      const isConnected = (id) => [...connections.values()].some((other) => other.has(id));
      driver.disconnected(isConnected, supervisors);
    });
    injector.injectConnection(socket);
  });
  await listen(server);
  const file = process.env.HSUP_DRIVER_SOCKET;
  const folder = file ? `${file.replace(/\.sock$/, "")}.d` : fs.mkdtempSync(path.join(os.tmpdir(), "hsup-driver-"));
  fs.rmSync(folder, { recursive: true, force: true }); // A driver that was killed has left it; its dynos died with it.
  fs.mkdirSync(folder, { mode: 0o700 });
  driver.begin(folder);
  const end = async () => {
    server.close();
    await driver.end();
    fs.rmSync(folder, { recursive: true });
    process.exit(0);
  };
  process.on("SIGTERM", end);
  const parent = process.ppid;
  setInterval(() => process.ppid === parent || connections.size || driver.isBusy() || end(), 5_000);
}

module.exports = { SHIM, fifo, grpc, refuse, require_, serve };
