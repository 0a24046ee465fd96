// Pulls in processes of their own: at once, killed, and continued.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { pulledFolder } from '../src/index.js';
import { sha256 } from './hub-server.js';
import { noise, Workplace } from './workplace.js';

const NAME = 'someone/model';
const files = Object.fromEntries(
  [1, 2, 3].map((part) => [`part-${part}.safetensors`, noise(1_000_000, part)]),
);

let place: Workplace;
beforeEach(async () => {
  place = await Workplace.start();
  place.server.add(NAME, { 'config.json': '{}', ...files });
});
afterEach(() => place[Symbol.asyncDispose]());

/** Pulls with the built package, and prints the path. */
function startPull(): {
  child: ChildProcess;
  ended: Promise<{ exitCode: number; path: string; states: string[] }>;
} {
  const built = new URL('../dist/index.js', import.meta.url);
  const script = `
    import { pull } from ${JSON.stringify(built.href)};
    const { path, files } = await pull('${NAME}', { catalogue: { '${NAME}': {} }, retryDelayMs: 1 });
    console.log(JSON.stringify({ path, states: files.map(({ state }) => state) }));`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let printed = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    printed += text;
  });
  const ended = once(child, 'close').then(([exitCode]) => ({ exitCode, ...JSON.parse(printed || '{}') }));
  return { child, ended };
}

const begun = (data: Buffer) => `${place.blob(NAME, sha256(data))}.llamavid.incomplete`;
const ranges = () => place.server.contentRequests('/lfs/').map(({ headers }) => headers.range);

describe('processes', () => {
  it('that pull the same model at once fetch each file once', async () => {
    place.server.paceMs = 30;
    const ended = await Promise.all([startPull(), startPull(), startPull()].map((each) => each.ended));
    const folder = pulledFolder(NAME) as string;
    expect(ended.map(({ exitCode, path }) => [exitCode, path])).toEqual(Array(3).fill([0, folder]));
    expect(ranges()).toEqual([undefined, undefined, undefined]);
    expect(ended.flatMap(({ states }) => states).filter((state) => state === 'fetched')).toHaveLength(4);
    for (const [name, data] of Object.entries(files)) expect(readFileSync(join(folder, name))).toEqual(data);
  });

  it('that are killed leave nothing that loads, and the next one continues', async () => {
    place.server.paceMs = 30;
    for (let round = 0; round < 2; round += 1) {
      const { child, ended } = startPull();
      // The second is killed while it has taken over the locks of the first, or still waits for them.
      const enough = (round + 1) * 150_000;
      while (
        !Object.values(files).some((data) => existsSync(begun(data)) && statSync(begun(data)).size > enough)
      ) {
        await sleep(20);
      }
      child.kill('SIGKILL');
      await ended;
      expect(pulledFolder(NAME)).toBeUndefined();
    }
    place.server.paceMs = 0;
    const kept = new Map(
      Object.values(files).map((data) => [
        sha256(data),
        existsSync(begun(data)) ? statSync(begun(data)).size : 0,
      ]),
    );
    const before = place.server.log.length;
    const { exitCode, path } = await startPull().ended;
    expect(exitCode).toBe(0);
    for (const [name, data] of Object.entries(files)) expect(readFileSync(join(path, name))).toEqual(data);
    for (const { path, headers } of place.server.log.slice(before).filter(({ origin }) => origin === 'cdn')) {
      const size = kept.get(path.split('/')[2] ?? '');
      expect(headers.range).toBe(size ? `bytes=${size}-` : undefined);
    }
    expect(place.files().filter((each) => each.includes('incomplete'))).toEqual([]);
  });

  it('that are killed at any moment leave a whole model or none', async () => {
    place.server.paceMs = 10;
    const begun = performance.now();
    await startPull().ended;
    const whole = performance.now() - begun;
    const rounds = 6;
    for (let round = 0; round < rounds; round += 1) {
      rmSync(place.hub, { recursive: true, force: true });
      const { child, ended } = startPull();
      await sleep((whole * (round + 0.5)) / rounds);
      child.kill('SIGKILL');
      await ended;
      const left = pulledFolder(NAME);
      if (left === undefined) continue;
      for (const [name, data] of Object.entries(files)) expect(readFileSync(join(left, name))).toEqual(data);
    }
    const { exitCode, path } = await startPull().ended;
    expect(exitCode).toBe(0);
    for (const [name, data] of Object.entries(files)) expect(readFileSync(join(path, name))).toEqual(data);
  });
});
