import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { modelPath } from '../src/index.js';

const files = readdirSync(modelPath, { recursive: true, encoding: 'utf8' }).filter((name) =>
  statSync(join(modelPath, name)).isFile(),
);

it('is a whole model in the published layout', () => {
  expect(files).toEqual(
    expect.arrayContaining([
      'bert/vocab.txt',
      'config.json',
      'measured.json',
      'model.safetensors',
      'processor/preprocessor_config.json',
      'tokenizer.model',
    ]),
  );
});

it('is small enough to be installed with the command line', () => {
  const bytes = files.reduce((sum, name) => sum + statSync(join(modelPath, name)).size, 0);
  expect(bytes).toBeLessThan(10_000_000);
});

it('claims accuracies that were measured, beside chance and a model without the video', () => {
  const { types } = JSON.parse(readFileSync(join(modelPath, 'measured.json'), 'utf8'));
  for (const [type, measured] of Object.entries<Record<string, number>>(types)) {
    expect(measured['questions'], type).toBeGreaterThan(0);
    for (const share of ['accuracy', 'chance', 'blind']) {
      expect(measured[share], `${type}: ${share}`).toBeGreaterThanOrEqual(0);
      expect(measured[share], `${type}: ${share}`).toBeLessThanOrEqual(1);
    }
  }
});
