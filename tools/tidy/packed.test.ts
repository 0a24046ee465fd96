// Each package as a user gets it: packed, installed with npm into an empty folder, its README's example run.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '../..');
const model = join(root, 'fixtures/random-model');
const clip = join(root, 'fixtures/clips/bbb_vp9.webm');

interface Manifest {
  name: string;
  private?: boolean;
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

const folders = [
  ...readdirSync(join(root, 'packages')).map((name) => join(root, 'packages', name)),
  ...readdirSync(join(root, 'packages/native/npm')).map((name) => join(root, 'packages/native/npm', name)),
];
const manifests = new Map<string, { folder: string; manifest: Manifest }>();
for (const folder of folders) {
  const manifest: Manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
  manifests.set(manifest.name, { folder, manifest });
}

/** The package and the packages of this repository that it needs, however far down. */
function closure(name: string, seen = new Set<string>()): Set<string> {
  const entry = manifests.get(name);
  if (entry === undefined || seen.has(name)) return seen;
  seen.add(name);
  for (const next of Object.keys({
    ...entry.manifest.dependencies,
    ...entry.manifest.optionalDependencies,
  })) {
    closure(next, seen);
  }
  return seen;
}

describe('packed packages', () => {
  const work = mkdtempSync(join(tmpdir(), 'llamavid-packed-'));
  const tarballs = new Map<string, string>();

  beforeAll(() => {
    for (const [name, { folder }] of manifests) {
      const packed = execFileSync('pnpm', ['pack', '--json', '--pack-destination', work], {
        cwd: folder,
        encoding: 'utf8',
      });
      tarballs.set(name, JSON.parse(packed.slice(packed.indexOf('{'))).filename);
    }
  });
  afterAll(() => rmSync(work, { recursive: true, force: true }));

  /** An empty project with `name` installed from its tarball. */
  function project(name: string): string {
    const folder = join(work, name.replaceAll(/[@/]/g, '_'));
    mkdirSync(folder);
    writeFileSync(
      join(folder, 'package.json'),
      JSON.stringify({ name: 'newcomer', private: true, type: 'module' }),
    );
    const needed = [...closure(name)].map((each) => tarballs.get(each) ?? '');
    execFileSync(
      'npm',
      ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', ...needed],
      {
        cwd: folder,
        stdio: 'pipe',
      },
    );
    return folder;
  }

  for (const [name, { folder }] of manifests) {
    const readme = readFileSync(join(folder, 'README.md'), 'utf8');
    const example = /```ts\n([\s\S]*?)```/.exec(readme)?.[1];
    if (example === undefined) continue;
    it(`${name}: the README's example runs`, () => {
      const place = project(name);
      writeFileSync(join(place, 'example.ts'), example);
      // What an example writes goes to the project.
      const args = {
        '@llamavid/hub': [],
        '@llamavid/pipeline': [clip, model],
        '@llamavid/speech': [
          join(root, 'fixtures/clips/bbb_720p_h264_aac.mp4'),
          join(root, 'fixtures/speech'),
        ],
        '@llamavid/video': [clip],
        '@llamavid/world': [],
      }[name] ?? [model, clip];
      const printed = execFileSync(process.execPath, ['example.ts', ...args], {
        cwd: place,
        encoding: 'utf8',
      });
      expect(printed.trim()).not.toBe('');
    });
  }

  it('@llamavid/tiny is at most 10 MB packed', () => {
    expect(statSync(tarballs.get('@llamavid/tiny') ?? '').size).toBeLessThan(10_000_000);
  });

  it('llamavid: the installed command answers, with the embedded model and with another', () => {
    const place = project('llamavid');
    const command = join(place, 'node_modules/.bin/llamavid');
    const shapes = join(root, 'fixtures/world/media/multi-018.mp4');
    const embedded = execFileSync(command, ['ask', shapes, 'what appears first?', '--json'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    expect(JSON.parse(embedded)).toMatchObject({ model: { name: 'tiny' }, finishReason: 'stop' });
    const printed = execFileSync(
      command,
      ['ask', clip, 'What is it?', '--model', model, '--max-new-tokens', '4', '--json'],
      {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    );
    const result = JSON.parse(printed);
    expect(result.tokenIds).toHaveLength(4);
    expect(result.sampling.frames).toBe(result.sampling.timestamps.length);
  });
});
