import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { changeRecipe, checkRecipe, loadRecipe, recipeNames } from '../dist/recipe.js';
import { temporaryFolder } from './temporary-folder.js';

const folder = temporaryFolder();

describe('recipes', () => {
  it('are all valid and named after their files', () => {
    expect(recipeNames().length).toBe(readdirSync(join(import.meta.dirname, '../recipes')).length);
    for (const name of recipeNames()) expect(loadRecipe(name).name).toBe(name);
  });

  it('hold the published hyperparameters', () => {
    const rows = recipeNames()
      .filter((name) => !name.startsWith('tiny'))
      .map((name) => {
        const { batch, optimizer, data, model, stage, compute } = loadRecipe(name);
        expect([
          batch.devices,
          optimizer.kind,
          optimizer.betas,
          optimizer.epsilon,
          optimizer.weightDecay,
        ]).toEqual([...[8, 'adamw', [0.9, 0.999], 1e-8, 0]]);
        expect([optimizer.schedule, optimizer.warmupRatio, optimizer.gradientClip]).toEqual([
          'cosine',
          0.03,
          null,
        ]);
        expect([compute.dtype, compute.queryDropout, model.queryCount]).toEqual(['bf16', 0.1, 32]);
        expect(model.bertType).toBe(
          ['', 'qformer_pretrain_freeze', 'qformer_pretrain', 'qformer_pretrain_freeze_all'][stage],
        );
        expect(optimizer.learningRate).toBe(stage === 1 ? 1e-3 : 2e-5);
        expect([data.template, data.imageAspectRatio, data.groupByModalityLength]).toEqual(
          stage === 1 ? ['plain_guided', 'square', false] : ['imgsp_v1', 'pad', true],
        );
        return `${name} ${batch.perDevice}x${batch.accumulation} ${data.maxLength} ${model.compression} ${model.imageSize}`;
      });
    expect(rows).toEqual([
      'image-224-13b-stage1 32x1 2048 none 224',
      'image-224-13b-stage2 2x4 4096 none 224',
      'image-224-7b-stage1 32x1 2048 none 224',
      'image-224-7b-stage2 16x1 4096 none 224',
      'image-336-13b-stage1 32x1 2048 none 336',
      'image-336-13b-stage2 2x4 4096 none 336',
      'image-336-7b-stage1 32x1 2048 none 336',
      'image-336-7b-stage2 8x2 4096 none 336',
      'image-grid4-13b-stage1 32x1 2048 grid:4 224',
      'image-grid4-13b-stage2 2x4 2048 grid:4 224',
      'image-grid4-7b-stage1 32x1 2048 grid:4 224',
      'image-grid4-7b-stage2 16x1 2048 grid:4 224',
      'long-video-7b-stage3 1x1 65536 mean 224',
      'video-13b-stage1 32x1 2048 mean 224',
      'video-13b-stage2 2x2 2048 mean 224',
      'video-7b-stage1 32x1 2048 mean 224',
      'video-7b-stage2 4x4 2048 mean 224',
      'video-grid2-7b-stage1 16x2 2048 grid:2 224',
      'video-grid2-7b-stage2 2x8 2048 grid:2 224',
    ]);
  });

  it('can be changed in parts', () => {
    const recipe = changeRecipe(loadRecipe('video-7b-stage2'), {
      optimizer: { learningRate: 1e-4, betas: [0.8, 0.9] },
      lora: { rank: 8, alpha: 16, dropout: 0, targets: ['q_proj'], merge: true },
    });
    expect([recipe.optimizer.learningRate, recipe.optimizer.epsilon, recipe.lora?.rank]).toEqual([
      1e-4, 1e-8, 8,
    ]);
    expect(loadRecipe('video-7b-stage2').optimizer.learningRate).toBe(2e-5);
  });

  for (const [what, changes, says] of [
    ['a rate of 0', { optimizer: { learningRate: 0 } }, 'optimizer.learningRate is 0, but must be above 0'],
    [
      'a rate that is no number',
      { optimizer: { learningRate: Number.NaN } },
      'optimizer.learningRate is NaN',
    ],
    ['a negative rate', { optimizer: { learningRate: -1 } }, 'must be above 0'],
    ['half a record', { batch: { perDevice: 0.5 } }, 'batch.perDevice is 0.5, but must be a whole number'],
    ['an unknown field', { optimiser: {} }, 'optimiser is not known'],
    ['an unknown stage', { stage: 4 }, 'stage is 4, but must be one of 1, 2, 3'],
    [
      'a wrong projection',
      { lora: { rank: 1, alpha: 1, dropout: 0, targets: ['lm_head'], merge: true } },
      'lora.targets[0]',
    ],
    [
      'three betas',
      { optimizer: { betas: [0.1, 0.2, 0.3] } },
      'optimizer.betas has 3 values, but must have 2',
    ],
  ] as const) {
    it(`refuse ${what}`, () => {
      expect(() => changeRecipe(loadRecipe('tiny-stage1'), changes as never)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(says) }),
      );
    });
  }

  it('refuse what is no recipe', () => {
    const file = join(folder, 'half.json');
    writeFileSync(
      file,
      readFileSync(join(import.meta.dirname, '../recipes/tiny-stage1.json')).subarray(0, 300),
    );
    for (const name of ['nobody', file, join(import.meta.dirname, '../package.json')]) {
      expect(() => loadRecipe(name)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    }
    expect(() => checkRecipe({ name: 'x' })).toThrow(/is missing in the recipe \(and \d+ more/);
  });
});
