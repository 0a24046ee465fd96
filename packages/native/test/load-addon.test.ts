import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { expect, it } from 'vitest';

/** Imports the built package in a process of its own. */
function load(environment: Record<string, string>) {
  const entry = JSON.stringify(join(import.meta.dirname, '../dist/index.js'));
  const script = `import(${entry}).then(
    ({ errorCodes }) => console.log(errorCodes().length > 0),
    ({ code, message, hint }) => console.log(JSON.stringify({ code, message, hint })),
  )`;
  const options = { env: { ...process.env, ...environment }, encoding: 'utf8' } as const;
  return JSON.parse(spawnSync(process.execPath, ['-e', script], options).stdout);
}

it('loads the addon of this platform', () => {
  expect(load({})).toBe(true);
});

it('says which addon it could not load, and where', () => {
  const path = join(import.meta.dirname, 'load-addon.test.ts');
  const { code, message, hint } = load({ LLAMAVID_NATIVE_PATH: path });
  expect(code).toBe('DEVICE_UNAVAILABLE');
  expect(message).toContain(path);
  expect(message).toContain(process.platform);
  expect(hint).toMatch(/./);
});
