import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ConvertProgress, convert, inspect } from '../src/index.js';

const model = join(import.meta.dirname, '../../../fixtures/random-model');
const tiny = join(import.meta.dirname, '../../tiny/model');
const root = mkdtempSync(join(tmpdir(), 'llamavid-convert-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe('convert', () => {
  it('makes one folder and says how far it is', async () => {
    const seen: ConvertProgress[] = [];
    const output = join(root, 'plain');
    const made = await convert([model], output, { onProgress: (progress) => seen.push(progress) });
    expect(made).toMatchObject({ folder: output, tensors: 176 });
    for (const { done, total } of seen) expect(done).toBeLessThanOrEqual(total);
    const manifest = JSON.parse(readFileSync(join(output, 'manifest.json'), 'utf8'));
    expect(Object.keys(manifest.tensors)).toHaveLength(176);
    expect(made.bytes).toBe(
      Object.values<{ bytes: number }>(manifest.files).reduce((sum, { bytes }) => sum + bytes, 0),
    );
  });

  it('quantises', async () => {
    const output = join(root, 'blocks');
    await convert([tiny], output, { quantize: 'q8_0', quantizeVision: true });
    expect(readdirSync(output)).toEqual(
      expect.arrayContaining(['language-model.gguf', 'token-generator.gguf', 'visual-encoder.gguf']),
    );
    const { problems, parts } = await inspect(output, { verify: true });
    expect(problems).toEqual([]);
    expect(parts[2]?.dtypes).toEqual({ F16: 1, F32: 11, Q8_0: 36 });
  });

  it('interleaves rows, while it quantises and of a file in blocks', async () => {
    const dtypes = async (folder: string) => (await inspect(folder, { verify: true })).parts[2]?.dtypes;
    const expected = { F16: 1, F32: 11, 'Q8_0 interleaved': 36 };
    const once = join(root, 'interleaved');
    await convert([tiny], once, { quantize: 'q8_0', interleave: true });
    expect(await dtypes(once)).toEqual(expected);
    const plain = join(root, 'in-order');
    await convert([tiny], plain, { quantize: 'q8_0' });
    const later = join(root, 'interleaved-later');
    await convert([plain], later, { interleave: true });
    expect(await dtypes(later)).toEqual(expected);
    const file = join(later, 'language-model.gguf');
    const { tensors } = await inspect(file);
    expect(tensors.find(({ name }) => name === 'output.weight')?.dtype).toBe('Q8_0 interleaved');
    const { size } = statSync(file);
    expect(Math.abs(size - statSync(join(plain, 'language-model.gguf')).size)).toBeLessThan(4096);
    await expect(convert([tiny], join(root, 'no-blocks'), { interleave: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      hint: expect.stringContaining('--quantize'),
    });
  });

  it('refuses what it cannot do with a code', async () => {
    const output = join(root, 'none');
    await expect(convert([], output)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert([model], '')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert([model], root)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert([join(root, 'nothing')], output)).rejects.toMatchObject({ code: 'MODEL_NOT_FOUND' });
    const wrong = { quantize: 'q3' as 'q4_0' };
    await expect(convert([model], output, wrong)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert([model], output, { shardBytes: -1 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    const eva = join(model, 'eva_vit_g.pth');
    await expect(convert([eva], output)).rejects.toMatchObject({
      code: 'MODEL_FILE_MISSING',
      hint: expect.stringContaining('llamavid pull'),
    });
    expect(existsSync(output)).toBe(false);
  });

  it('stops when it is aborted and leaves nothing', async () => {
    const aborted = AbortSignal.abort(new Error('enough'));
    const output = join(root, 'aborted');
    await expect(convert([model], output, { signal: aborted })).rejects.toMatchObject({ code: 'ABORTED' });
    const controller = new AbortController();
    const running = convert([tiny], output, {
      signal: controller.signal,
      onProgress: () => controller.abort(),
    });
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
    expect(readdirSync(root).filter((name) => name.includes('aborted'))).toEqual([]);
  });
});

describe('inspect', () => {
  it('describes a folder and a file', async () => {
    const { converted, parts, problems, sideFiles } = await inspect(model);
    expect({ converted, problems }).toEqual({ converted: false, problems: [] });
    expect(parts.map(({ name }) => name)).toEqual(['visual encoder', 'token generator', 'language model']);
    expect(sideFiles.every(({ path }) => path !== null)).toBe(true);
    const { tensors } = await inspect(join(model, 'eva_vit_g.pth'));
    expect(tensors.map(({ name }) => name)).toContain('pos_embed');
  });

  it('names what is wrong', async () => {
    const damaged = join(root, 'damaged');
    cpSync(model, damaged, { recursive: true });
    truncateSync(join(damaged, 'tokenizer.model'), 100);
    const { problems } = await inspect(damaged);
    expect(problems).toEqual([
      {
        code: 'MODEL_INVALID',
        message: expect.stringContaining('tokenizer.model'),
        hint: expect.any(String),
      },
    ]);
    await expect(inspect(damaged, { verify: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(inspect(join(root, 'nothing'))).rejects.toMatchObject({ code: 'MODEL_NOT_FOUND' });
  });
});
