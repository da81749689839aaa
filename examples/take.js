#!/usr/bin/env node
// Takes a lock, works under it, renews it meanwhile, and releases it.
//
//     node take.js MOUNT [NAME]
"use strict";
const fs = require("node:fs/promises");
const { setTimeout: pause } = require("node:timers/promises");

// The open waits in line, in a thread of Node's pool: the event loop runs on, and signals do not interrupt it.
async function take(mount, name) {
  const text = await fs.readFile(`${mount}/take/${name}+30s`, "utf8");
  return text.trim();
}

async function held(lock) {
  try {
    return (await fs.stat(lock)).isDirectory();
  } catch (e) {
    if (e.code === "ENOENT") return false;
    throw e;
  }
}

async function main(mount, name = "example") {
  const token = await take(mount, name);
  const lock = `${mount}/tlock/${name}@${token}`; // exists only as long as this very lock is held
  console.log(`took ${name}, token ${token}`);
  for (let part = 1; part <= 3; part++) {
    await pause(100); // in place of work: each part must take less than the timeout
    if (!(await held(lock))) throw new Error(`${name} is no longer ours: stopping before harm is done`);
    await fs.writeFile(`${lock}/timeout`, "30s\n"); // renew
    console.log(`part ${part} done, renewed`);
  }
  await fs.rmdir(lock); // by token: never somebody else's
  console.log(`released ${name}`);
}

function fail(text) {
  console.error(`take.js: ${text}`);
  process.exitCode = 1;
}

const args = process.argv.slice(2);
if (args.length < 1 || args.length > 2) fail("usage: take.js MOUNT [NAME]");
else main(...args).catch((e) => fail(e.message));
