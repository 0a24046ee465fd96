// The import rules of ARCHITECTURE.md: who may depend on whom, and what is absent on purpose.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '../..');

/** What each crate may depend on among the crates of this repository. */
const crates: Record<string, string[]> = {
  kernels: [],
  weights: ['kernels'],
  world: [],
  models: ['kernels'],
  train: ['kernels', 'models', 'weights'],
  store: [],
  runtime: ['kernels', 'models', 'store', 'train', 'weights'],
  convert: ['models', 'runtime', 'weights'],
  speech: ['kernels', 'models', 'runtime', 'weights'],
  napi: ['convert', 'runtime', 'speech', 'world'],
  parity: ['kernels', 'models', 'runtime', 'train', 'weights'],
  tiny: ['kernels', 'models', 'train', 'world'],
};

/** What each package may import among the packages of this repository; `types` may be imported as types only. */
const packages: Record<string, { values: string[]; types?: string[] }> = {
  errors: { values: [] },
  hub: { values: ['@llamavid/errors'] },
  native: { values: ['@llamavid/errors'] },
  video: { values: ['@llamavid/errors', '@llamavid/native'] },
  vision: { values: ['@llamavid/errors', '@llamavid/native'], types: ['@llamavid/video'] },
  tokens: { values: ['@llamavid/errors', '@llamavid/native'], types: ['@llamavid/vision'] },
  llm: { values: ['@llamavid/errors', '@llamavid/native'], types: ['@llamavid/tokens'] },
  train: { values: ['@llamavid/errors', '@llamavid/native', '@llamavid/video'] },
  world: { values: ['@llamavid/errors', '@llamavid/native', '@llamavid/video'] },
  convert: { values: ['@llamavid/errors', '@llamavid/native'] },
  speech: { values: ['@llamavid/errors', '@llamavid/native', '@llamavid/video'] },
  tiny: { values: [] },
  pipeline: {
    values: [
      '@llamavid/errors',
      '@llamavid/hub',
      '@llamavid/llm',
      '@llamavid/native',
      '@llamavid/speech',
      '@llamavid/tiny',
      '@llamavid/tokens',
      '@llamavid/video',
      '@llamavid/vision',
    ],
  },
  cli: {
    values: [
      '@llamavid/convert',
      '@llamavid/errors',
      '@llamavid/hub',
      '@llamavid/native',
      '@llamavid/pipeline',
      '@llamavid/speech',
      '@llamavid/train',
      '@llamavid/video',
      '@llamavid/world',
    ],
  },
};

function sources(folder: string, ending: string): { path: string; text: string }[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ending) && !name.includes('node_modules') && !name.endsWith('.d.ts'))
    .map((name) => ({ path: join(folder, name), text: readFileSync(join(folder, name), 'utf8') }));
}

describe('crates', () => {
  it('are all listed here', () => {
    const found = readdirSync(join(root, 'crates')).map((name) => name.replace('llamavid-', ''));
    expect(found.sort()).toEqual(Object.keys(crates).sort());
  });

  for (const [crate, allowed] of Object.entries(crates)) {
    it(`llamavid-${crate} depends only on the layers below it`, () => {
      const manifest = readFileSync(join(root, `crates/llamavid-${crate}/Cargo.toml`), 'utf8');
      const normal = manifest.split('[dev-dependencies]')[0] ?? '';
      const used = [...normal.matchAll(/^llamavid-(\w+)\b/gm)].map((match) => match[1] ?? '');
      expect(used.filter((name) => !allowed.includes(name))).toEqual([]);
    });
  }

  it('llamavid-models opens no file and starts no thread', () => {
    for (const { path, text } of sources(join(root, 'crates/llamavid-models/src'), '.rs')) {
      const product = text.split('#[cfg(test)]')[0] ?? '';
      expect(product, path).not.toMatch(/std::fs|std::thread|File::open|thread::spawn/);
    }
  });

  it('llamavid-napi computes nothing: it does not know candle', () => {
    expect(readFileSync(join(root, 'crates/llamavid-napi/Cargo.toml'), 'utf8')).not.toMatch(/candle/);
  });
});

describe('packages', () => {
  it('are all listed here', () => {
    const found = readdirSync(join(root, 'packages')).filter((name) =>
      existsSync(join(root, 'packages', name, 'package.json')),
    );
    expect(found.sort()).toEqual(Object.keys(packages).sort());
  });

  for (const [name, { values, types = [] }] of Object.entries(packages)) {
    it(`${name} imports only what it may`, () => {
      for (const { path, text } of sources(join(root, 'packages', name, 'src'), '.ts')) {
        for (const match of text.matchAll(
          /^\s*(import|export)\s+(type\s)?[^;]*?from\s+'(@llamavid\/[\w-]+|llamavid)/gm,
        )) {
          const allowed = match[2] === undefined ? values : [...values, ...types];
          expect(allowed, `${path} imports ${match[3]}`).toContain(match[3]);
        }
      }
    });

    it(`${name} declares every package that it imports`, () => {
      const folder = join(root, 'packages', name);
      const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      const declared = Object.keys({
        ...manifest.dependencies,
        ...manifest.peerDependencies,
        ...manifest.optionalDependencies,
      });
      for (const { path, text } of sources(join(folder, 'src'), '.ts')) {
        for (const match of text.matchAll(/from\s+'((?:@[\w-]+\/)?[\w-]+)(?:\/[^']*)?'/g)) {
          expect(declared, `${path} imports ${match[1]}`).toContain(match[1]);
        }
      }
    });
  }

  it('know FFmpeg in one place only', () => {
    for (const name of Object.keys(packages).filter((name) => name !== 'video')) {
      for (const { path, text } of sources(join(root, 'packages', name, 'src'), '.ts')) {
        expect(text, path).not.toMatch(/from 'node-av/);
      }
    }
  });
});
