import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';

/** A clip of the repository. */
export function clip(name: string): string {
  return fileURLToPath(new URL(`../../../fixtures/clips/${name}`, import.meta.url));
}

/** A folder that goes when the test file is done. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'llamavid-test-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
