import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { modelPath } from '@llamavid/tiny';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { byMedia, isRight, likelihoodOfSoFew, type Row, readRows } from '../../../tools/tiny/questions.js';
import { LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';

interface Claim {
  questions: number;
  accuracy: number | null;
}

/** What the embedded model's own evaluation found, on other videos than these (`pnpm eval:tiny`). */
const claims: { all: Claim; types: Record<string, Claim & { kinds?: Record<string, Claim> }> } = JSON.parse(
  readFileSync(join(modelPath, 'measured.json'), 'utf8'),
);
const rows = readRows(join(fixtures, 'world'));

/** The accuracy that the claim makes likely: one more question right and one more wrong, as no finite count proves 100 %. */
function claimed({ type, kind }: Row): number {
  const claim = claims.types[type]?.kinds?.[kind] ?? claims.types[type];
  if (typeof claim?.accuracy !== 'number')
    throw new Error(`no accuracy is claimed for questions of type ${type}`);
  return (claim.accuracy * claim.questions + 1) / (claim.questions + 2);
}

describe('the embedded model', () => {
  let model: LlamaVid;
  const right = new Map<Row, boolean>();

  beforeAll(async () => {
    model = await LlamaVid.load();
    for (const group of byMedia(rows)) {
      const [first] = group;
      if (first === undefined) continue;
      await using clip = await model.open(first.media, { subtitles: first.subtitles });
      for (const row of group) {
        const { text } = await model.ask(clip, row.question, { maxNewTokens: 200 }).result();
        right.set(row, isRight(text, row.answer));
      }
    }
  }, 600_000);
  afterAll(() => model.close());

  it('is the default, by its name too', async () => {
    expect(model.model.name).toBe('tiny');
    await using named = await LlamaVid.load('tiny');
    const ask = async (each: LlamaVid) => (await each.ask(undefined, 'where is it?').result()).tokenIds;
    expect(await ask(named)).toEqual(await ask(model));
  });

  const types = [...Map.groupBy(rows, (row) => row.type)];
  for (const [type, of] of [...types, ['all types', rows] as const]) {
    it(`answers as well as is claimed: ${type}, ${of.length} questions`, () => {
      const found = of.filter((row) => right.get(row)).length;
      // One unlucky sample in 10,000 of a model that is as good as claimed would fail.
      const likelihood = likelihoodOfSoFew(of.map(claimed), found);
      expect(likelihood, `${found} of ${of.length} are right`).toBeGreaterThan(1e-4);
    });
  }
});
