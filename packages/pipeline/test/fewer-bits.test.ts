import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const picture = join(fixtures, 'world/media/image-000.png');

describe('the embedded model in fewer bits', () => {
  for (const [load, dtype] of [
    ['16bit', 'f32'],
    ['8bit', 'q8_0'],
    // Its rows fill no large blocks, so that the next finer format takes them.
    ['4bit', 'q8_0'],
  ] as const) {
    it(`answers with weights of ${load}, and with keys and values in 8 and 4 bits`, async () => {
      await using model = await LlamaVid.load('tiny', { device: 'cpu', load });
      expect(model.model.dtype).toBe(dtype);
      await using clip = await model.open(picture);
      for (const kvCache of ['16bit', '8bit', '4bit'] as const) {
        const { text, model: told } = await model
          .ask(clip, 'how many objects are there?', { kvCache })
          .result();
        expect(text).not.toBe('');
        expect(told.dtype).toBe(dtype);
      }
    });
  }
});
