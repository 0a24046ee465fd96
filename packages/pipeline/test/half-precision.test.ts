import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';
import { roomyModel } from './roomy-model.js';
import { writeRounded } from './safetensors.js';

/** The layout of the embedded model: everything in one file, in half precision. */
it('computes in f32 with weights that are stored in f16', async () => {
  const weights = join(fixtures, 'oracle/video-mean/weights.safetensors');
  const ids: number[][] = [];
  for (const dtype of ['F16', 'F32'] as const) {
    using source = roomyModel();
    const folder = mkdtempSync(join(tmpdir(), 'llamavid-half-'));
    try {
      for (const name of ['config.json', 'tokenizer.model', 'tokenizer_config.json', 'bert', 'processor'])
        cpSync(join(source.folder, name), join(folder, name), { recursive: true });
      writeRounded(weights, join(folder, 'model.safetensors'), dtype);
      await using model = await LlamaVid.load(folder, { device: 'cpu' });
      expect(model.model.dtype).toBe('f32');
      await using clip = await model.open(join(fixtures, 'clips/bbb_vp9.webm'), { frames: 3 });
      ids.push((await model.ask(clip, 'What happens?', { maxNewTokens: 24 }).result()).tokenIds);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  expect(ids[0]).toHaveLength(24);
  expect(ids[0]).toEqual(ids[1]);
});
