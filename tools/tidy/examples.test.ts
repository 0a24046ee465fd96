// The examples are run as a newcomer runs them.
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const folder = resolve(import.meta.dirname, '../../examples');

describe('examples', () => {
  for (const name of readdirSync(folder).filter((file) => file.endsWith('.ts'))) {
    it(`${name} runs without arguments`, () => {
      expect(execFileSync(process.execPath, [join(folder, name)], { encoding: 'utf8' })).not.toBe('');
    });
  }
});
