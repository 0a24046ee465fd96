import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fixtures } from './oracle-model.js';

/** The model with random weights, with a context for long videos and more in its `llamavid` block. */
export function roomyModel(more: object = {}): Disposable & { folder: string } {
  const folder = mkdtempSync(join(tmpdir(), 'llamavid-model-'));
  cpSync(join(fixtures, 'random-model'), folder, { recursive: true });
  const path = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(path, 'utf8'));
  config.max_position_embeddings = 4096;
  Object.assign(config.llamavid, more);
  writeFileSync(path, JSON.stringify(config));
  return { folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}
