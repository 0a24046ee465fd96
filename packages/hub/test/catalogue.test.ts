import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import { afterAll, describe, expect, it } from 'vitest';
import { readCatalogue } from '../src/index.js';

const folder = mkdtempSync(join(tmpdir(), 'llamavid-catalogue-'));
afterAll(() => rmSync(folder, { recursive: true }));

function written(value: unknown): string {
  const file = join(folder, 'catalogue.json');
  writeFileSync(file, typeof value === 'string' ? value : JSON.stringify(value));
  return file;
}

const sizes = [
  '7b-full-224',
  '7b-full-336',
  '13b-full-336',
  '7b-full-224-video-fps-1',
  '13b-full-224-video-fps-1',
];
const stageOne = ['224', '336', '224-video-fps-1'].flatMap((size) => [
  `7b-pretrain-${size}`,
  `13b-pretrain-${size}`,
]);

describe('the built-in catalogue', () => {
  it('has every published model with the side files that it needs', async () => {
    const catalogue = await readCatalogue();
    for (const model of [...sizes, '7b-full-224-long-video', ...stageOne]) {
      const size = model.includes('336') ? '-336' : '';
      const base = model.startsWith('7b')
        ? ['7B-V1.5', 'lmsys/vicuna-7b-v1.5']
        : ['13B-V1.5', 'lmsys/vicuna-13b-v1.5'];
      expect(catalogue[`YanweiLi/llama-vid-${model}`], model).toMatchObject({
        needs: {
          'eva_vit_g.pth': 'LAVIS/eva_vit_g.pth',
          processor: `openai/clip-vit-large-patch14${size}`,
          bert: 'bert-base-uncased',
          ...(model.includes('pretrain') && Object.fromEntries([base])),
        },
      });
    }
    for (const file of [
      'eva_vit_g.pth',
      'instruct_blip_vicuna7b_trimmed.pth',
      'instruct_blip_vicuna13b_trimmed.pth',
    ]) {
      const address = `https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/`;
      expect(catalogue[`LAVIS/${file}`]).toMatchObject({ url: expect.stringContaining(address) });
    }
  });
});

describe('a catalogue of the user', () => {
  it('adds entries and replaces others', async () => {
    const file = written({
      entries: {
        'me/model': { needs: { bert: 'bert-base-uncased', 'eva.pth': 'eva' } },
        eva: { url: 'https://example.org/eva.pth', bytes: 3, sha256: '0'.repeat(64) },
        'lmsys/vicuna-7b-v1.5': { files: ['config.json'] },
      },
    });
    process.env['LLAMAVID_CATALOGUE'] = file;
    try {
      const catalogue = await readCatalogue();
      expect(catalogue['me/model']).toEqual({ needs: { bert: 'bert-base-uncased', 'eva.pth': 'eva' } });
      expect(catalogue['lmsys/vicuna-7b-v1.5']).toEqual({ files: ['config.json'] });
      expect(catalogue['bert-base-uncased']).toBeDefined();
    } finally {
      delete process.env['LLAMAVID_CATALOGUE'];
    }
  });

  const entries: Record<string, [unknown, RegExp]> = {
    'no JSON': ['{', /JSON/],
    'without entries': [{}, /entries/],
    'with an unknown field': [{ entries: { 'a/b': { nedes: {} } } }, /a\/b/],
    'with a need that is no entry': [
      { entries: { 'a/b': { needs: { bert: 'nothing' } } } },
      /needs nothing, which is no entry/,
    ],
    'with a need that leaves the folder': [
      { entries: { 'a/b': { needs: { '../x': 'bert-base-uncased' } } } },
      /needs/,
    ],
    'that needs itself': [
      { entries: { 'a/b': { needs: { x: 'a/c' } }, 'a/c': { needs: { y: 'a/b' } } } },
      /a\/b needs a\/c needs a\/b/,
    ],
    'with an address that is none': [{ entries: { eva: { url: 'file:///etc/passwd' } } }, /eva/],
    'with a name that is none': [{ entries: { 'a/b/c': {} } }, /a\/b\/c is no name/],
  };
  for (const [what, [value, says]] of Object.entries(entries)) {
    it(`${what} is refused`, async () => {
      const error = await readCatalogue(written(value)).catch((thrown: unknown) => thrown);
      expect(LlamaVidError.is(error) && error.code).toBe('INVALID_ARGUMENT');
      expect((error as Error).message).toMatch(says);
    });
  }

  it('that is not there is refused', async () => {
    await expect(readCatalogue(join(folder, 'nothing.json'))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });
});
