#!/usr/bin/env node
// A driver for hsup: dynos are plain processes that die with it. docs/driver-authors.md tells why it is as it is.
"use strict";
const { spawn } = require("node:child_process");
const { randomUUID } = require("node:crypto");
const { once } = require("node:events");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { SHIM, fifo, grpc, refuse, require_, serve } = require("./hsup-driver.js");

const { INVALID_ARGUMENT: BAD, NOT_FOUND, FAILED_PRECONDITION: WRONG_STATE, ALREADY_EXISTS } = grpc.status;
const DIRECTORY = "dir:"; // An artifact is a directory to run in: this, and its path.
const [instance, dynos, removed, leftAt] = [randomUUID(), new Map(), new Map(), new Map()];
let state; // The folder for hsup-shim, which writes down there how a dyno ended.

const find = (id) => dynos.get(id) ?? refuse(NOT_FOUND, "there is no such dyno");
// Maps have no order, and two requests that differ in that alone are the same.
const canonical = (value) => JSON.stringify(value, (_, inner) =>
  inner?.constructor === Object ? Object.fromEntries(Object.entries(inner).sort()) : inner);

function start(request, cwd) {
  const words = ["--die-with-parent", "--state", state, "--id", request.dyno_id, "--", ...request.argv];
  const stdio = [];
  try {
    for (const name of ["stdin", "stdout", "stderr"]) stdio.push(fifo(request.io_dir, name));
    const shim = spawn(SHIM, words, { cwd, env: request.env, stdio, detached: true });
    require_(shim.pid, BAD, "hsup-shim cannot be run");
    const dyno = { request, shim, started: Date.now(), state: "STATE_RUNNING", status: null };
    dyno.gone = once(shim, "exit").then(() => Object.assign(dyno, { state: "STATE_EXITED", status: exit(dyno) }));
    return dyno;
  } catch (error) {
    throw error.code > 0 ? error : { code: BAD, details: `failed to start: ${error.message}` };
  } finally {
    stdio.filter(Number.isInteger).forEach((fd) => fs.closeSync(fd));
  }
}

function exit({ request }) {
  try {
    const end = JSON.parse(fs.readFileSync(`${state}/${request.dyno_id}/exit.json`));
    const name = Object.keys(os.constants.signals).find((name) => os.constants.signals[name] === end.signal);
    return { exited_at_unix_ms: end.exited_at_unix_ms, ...("code" in end ? { code: end.code } : { signal: name }) };
  } catch (error) {
    return { lost: `hsup-shim did not say how it ended: ${error.message}` };
  }
}

function signal(dyno, name) { // SIGPWR has hsup-shim kill every process of the dyno.
  if (!dyno.status) dyno.shim.kill(name === "SIGKILL" ? "SIGPWR" : name);
}

async function stop({ dyno_id, signal: wanted, grace_ms, force }) {
  const [name, dyno] = [wanted || "SIGTERM", dynos.get(dyno_id)];
  require_(dyno_id && name in os.constants.signals, BAD, "no dyno_id, or no such signal");
  if (!dyno || dyno.status) return {};
  if (dyno.state !== "STATE_STOPPING" && !force) signal(dyno, name);
  dyno.state = "STATE_STOPPING";
  const timer = setTimeout(signal, force ? 0 : grace_ms || 30_000, dyno, "SIGKILL"); // Of several the first counts.
  await dyno.gone;
  clearTimeout(timer);
  return {};
}

const calls = {
  GetInfo: () => ({ name: "com.example.node", version: "1", instance_id: instance, ready: true,
    capabilities: ["CAPABILITY_STDIO_FIFO"], durability: "DURABILITY_NONE" }),
  Build({ release, options }) {
    require_(release && !Object.keys(options).length, BAD, "a release is needed, and no options");
    require_(/^(SHA256:[0-9a-f]{64})?$/i.test(release.slug_checksum), BAD, "slug_checksum is malformed");
    const directory = release.slug_url ? decodeURIComponent(release.slug_url.replace(/^file:\/\/|\?.*$/g, "")) : "/";
    const isDirectory = path.isAbsolute(directory) && fs.statSync(directory, { throwIfNoEntry: false })?.isDirectory();
    require_(isDirectory && !release.image, BAD, "this driver runs directories: slug_url must be file://DIR/");
    return { artifact: DIRECTORY + directory };
  },
  Start(request, connection) {
    connection.add(request.supervisor_id);
    const words = [...request.argv, ...Object.entries(request.env).flat()].join("");
    const directory = request.artifact.slice(DIRECTORY.length);
    for (const [id, at] of removed) if (at < Date.now() - 600_000) removed.delete(id);
    require_(/^[a-z0-9][a-z0-9-]{0,62}$/.test(request.dyno_id), BAD, "dyno_id is malformed");
    require_(request.supervisor_id && request.argv.length && request.artifact, BAD, "a field is missing");
    require_((request.app + request.process_type + request.supervisor_id).length < 512, BAD, "names are too long");
    require_(!words.includes("\0") && Object.keys(request.env).every((name) => /^[^=]+$/s.test(name)), BAD,
      "no process can have this argv or env");
    require_(!request.tty && !request.binds.length && !request.limits && !Object.keys(request.options).length, BAD,
      "this driver has no terminals, binds, options or limits");
    require_(!removed.has(request.dyno_id), WRONG_STATE, "this dyno was removed");
    const old = dynos.get(request.dyno_id);
    require_(!old || canonical(old.request) === canonical(request), ALREADY_EXISTS, "dyno_id was used otherwise");
    const isThere = request.artifact.startsWith(DIRECTORY) && fs.existsSync(directory);
    require_(old || isThere, NOT_FOUND, "artifact is not there");
    if (!old) dynos.set(request.dyno_id, start(request, directory));
    return {};
  },
  Stop: stop,
  async Wait({ dyno_id, timeout_ms }) {
    const dyno = find(dyno_id);
    const over = timeout_ms && new Promise((resolve) => setTimeout(resolve, timeout_ms).unref());
    await Promise.race([dyno.gone, ...(over ? [over] : [])]);
    return { status: dyno.status };
  },
  IPInfo({ dyno_id }) {
    const dyno = find(dyno_id);
    require_(!dyno.status, WRONG_STATE, "the dyno has exited");
    require_(dyno.request.env.PORT, WRONG_STATE, "the dyno has no PORT");
    return { ip: "127.0.0.1", port: Number(dyno.request.env.PORT) };
  },
  List({ supervisor_id }, connection) {
    connection.add(supervisor_id);
    const own = [...dynos.values()].filter(({ request }) => ["", request.supervisor_id].includes(supervisor_id));
    return { dynos: own.map(({ request, started, state, status }) => ({
      ...request, state, status, started_at_unix_ms: started })) };
  },
  Remove({ dyno_id, artifact }) {
    require_(dyno_id || artifact, BAD, "what is to be removed is missing");
    const running = [...dynos.values()].filter((dyno) => !dyno.status);
    require_(!running.some(({ request }) => request.artifact === artifact), WRONG_STATE, "the artifact is in use");
    require_(!running.some(({ request }) => request.dyno_id === dyno_id), WRONG_STATE, "the dyno is running");
    if (artifact) return {}; // The directory is its owner's.
    dynos.delete(dyno_id);
    removed.set(dyno_id, Date.now());
    fs.rmSync(`${state}/${dyno_id}`, { recursive: true, force: true });
    return {};
  },
};

function disconnected(isConnected, supervisors) {
  for (const { request } of dynos.values()) {
    const { dyno_id, supervisor_id, linger_ms } = request;
    if (!linger_ms || !supervisors.has(supervisor_id)) continue;
    leftAt.set(supervisor_id, Date.now());
    const isOver = () => !isConnected(supervisor_id) && Date.now() >= leftAt.get(supervisor_id) + linger_ms;
    setTimeout(() => isOver() && stop({ dyno_id }), linger_ms + 1);
  }
}

async function end() {
  for (const dyno of dynos.values()) signal(dyno, "SIGKILL");
  for (const dyno of dynos.values()) await dyno.gone;
}

const begin = (folder) => { state = folder; };
serve({ begin, calls, disconnected, end, isBusy: () => [...dynos.values()].some((dyno) => !dyno.status) });
