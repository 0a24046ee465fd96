import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type StepReport, train } from '../dist/index.js';
import { type DataRecord, type SmallSet, smallSet, stage1 } from './small-set.js';
import { temporaryFolder } from './temporary-folder.js';

const folder = temporaryFolder();
let set: SmallSet;
beforeAll(() => {
  set = smallSet(join(folder, 'set'));
});

/** The options of stage 1 with a list of its own. */
function withList(name: string, output: string, change: (records: DataRecord[]) => void) {
  const records: DataRecord[] = JSON.parse(readFileSync(set.lists[0], 'utf8'));
  change(records);
  const data = join(folder, name);
  writeFileSync(data, JSON.stringify(records));
  return { ...stage1(set, join(folder, output)), data };
}

describe('train', () => {
  it('reports each step, and its result sums them up', async () => {
    const run = train(stage1(set, join(folder, 'whole')));
    const reports: StepReport[] = [];
    for await (const report of run) reports.push(report);
    expect(reports.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
    for (const report of reports) {
      expect(report).toMatchObject({ steps: 6, samples: 2, failures: [], epoch: report.step / 6 });
      expect(Number.isFinite(report.loss)).toBe(true);
      expect(report.tokens).toBeGreaterThan(0);
      expect(report.frames).toBeGreaterThanOrEqual(2);
    }
    expect(reports[0]?.learningRate).toBe(0);
    expect(reports[1]?.learningRate).toBe(1e-3);
    expect(reports.map(({ checkpoint }) => checkpoint !== undefined)).toEqual([
      ...[false, true, false, true, false, false],
    ]);
    const summary = await run.result();
    expect(summary).toMatchObject({ steps: 6, samples: 12, failures: [], loss: reports.at(-1)?.loss });
    expect(summary.frames).toBe(reports.reduce((total, { frames }) => total + frames, 0));
    // A finished run is told again and not done again.
    const again = train({ ...stage1(set, join(folder, 'whole')), resume: true });
    for await (const _ of again) expect.unreachable();
    expect(await again.result()).toMatchObject({ steps: 6, samples: 12, loss: summary.loss });
  });

  it('finishes its step when it is aborted, and goes on with the same losses', async () => {
    const straight = await losses(stage1(set, join(folder, 'straight')));
    const controller = new AbortController();
    const seen: StepReport[] = [];
    const run = train({ ...stage1(set, join(folder, 'aborted')), signal: controller.signal });
    const reading = (async () => {
      for await (const report of run) {
        seen.push(report);
        if (report.step === 3) controller.abort(new Error('enough'));
      }
    })();
    await expect(reading).rejects.toMatchObject({
      code: 'ABORTED',
      message: 'training stopped behind step 4 of 6',
    });
    await expect(run.result()).rejects.toMatchObject({ code: 'ABORTED' });
    expect(seen.at(-1)?.checkpoint).toBe(join(folder, 'aborted/checkpoint-4'));
    expect(await losses({ ...stage1(set, join(folder, 'aborted')), resume: true })).toEqual(
      straight.slice(4),
    );
    const lines = readFileSync(join(folder, 'aborted/metrics.jsonl'), 'utf8').trimEnd().split('\n');
    expect(lines.map((line) => JSON.parse(line).loss)).toEqual(straight);
  });

  it('ends where its reader leaves, and can be resumed', async () => {
    const run = train(stage1(set, join(folder, 'left')));
    for await (const { step } of run) if (step === 3) break;
    await expect(run.result()).rejects.toMatchObject({ code: 'ABORTED' });
    expect(existsSync(join(folder, 'left/checkpoint-2'))).toBe(true);
    // The lock is free again, and step 3 is done once more.
    expect(await losses({ ...stage1(set, join(folder, 'left')), resume: true })).toHaveLength(4);
  });

  it('counts what fails and never puts another record in its place', async () => {
    const options = withList('failing.json', 'failing', (records) => {
      for (const index of [0, 1]) (records[index] as DataRecord).image = `nowhere${index}.png`;
    });
    const reports: StepReport[] = [];
    for await (const report of train(options)) reports.push(report);
    expect(reports.flatMap(({ failures }) => failures.map(({ id }) => id)).sort()).toEqual(['a0', 'a1']);
    for (const { samples, failures } of reports) expect(samples + failures.length).toBe(2);
  });

  it('counts a step without a record, and changes nothing in it', async () => {
    const options = withList('one-step.json', 'one-step', (records) => {
      records.splice(2);
      (records[0] as DataRecord).image = 'nowhere.png';
    });
    const changes = { ...options.changes, epochs: 3, batch: { perDevice: 1, accumulation: 1, devices: 1 } };
    const reports: StepReport[] = [];
    for await (const report of train({ ...options, changes })) reports.push(report);
    const empty = reports.filter(({ samples }) => samples === 0);
    expect(empty).toHaveLength(3);
    for (const { loss, gradientNorm, failures } of empty) {
      expect([loss, gradientNorm, failures.length]).toEqual([null, null, 1]);
    }
  });

  it('stops when too many fail', async () => {
    const options = withList('most-fail.json', 'most-fail', (records) => {
      for (const record of records.slice(1)) {
        delete record.video;
        record.image = 'nowhere.png';
      }
    });
    const changes = { ...options.changes, epochs: 4 };
    await expect(train({ ...options, changes, failureLimit: 0.5 }).result()).rejects.toMatchObject({
      code: 'DATA_INVALID',
      message: expect.stringMatching(/^1\d of 1\d records failed, the last one a\d+: missing_file/),
    });
  });

  it('gives equal gradients however a step is cut into batches', async () => {
    // Without dropout, whose draws belong to batches.
    const cut = (output: string, perDevice: number, accumulation: number) => {
      const options = stage1(set, join(folder, output));
      const compute = { dtype: 'f32', activationCheckpointing: false, queryDropout: 0 } as const;
      const changes = { ...options.changes, compute, batch: { perDevice, accumulation, devices: 1 } };
      return losses({ ...options, changes });
    };
    const [whole, parts] = [await cut('cut4', 4, 1), await cut('cut1', 1, 4)];
    expect(parts).toHaveLength(3);
    for (const [index, loss] of parts.entries()) expect(loss).toBeCloseTo(whole[index] as number, 4);
  });

  for (const [what, options] of Object.entries({
    'no model': { languageModel: undefined },
    'two models': { model: 'set' },
    'no Q-Former': { queryModel: undefined },
    'no output': { output: '' },
    'an unknown device': { device: 'abacus' },
    'an impossible failure limit': { failureLimit: Number.NaN },
    'a query model of another stage': { changes: { model: { bertType: 'qformer_pretrain' } } },
  })) {
    it(`refuses ${what}`, async () => {
      const given = { ...stage1(set, join(folder, 'refused')), ...options };
      if ('model' in options) Object.assign(given, { model: folder });
      await expect(async () => await train(given).result()).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
    });
  }
});

async function losses(options: Parameters<typeof train>[0]): Promise<(number | null)[]> {
  const seen: (number | null)[] = [];
  for await (const { loss } of train(options)) seen.push(loss);
  return seen;
}
