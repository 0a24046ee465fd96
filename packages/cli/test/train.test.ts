// The three stages on a small set in the reference's format, at the toy sizes of a recorded case, as a user runs them.
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { llamavid } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const oracle = join(fixtures, 'oracle/long-video');
const work = mkdtempSync(join(tmpdir(), 'llamavid-cli-train-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

const images = join(work, 'images');
const videos = join(work, 'videos');
const list = (stage: number) => join(work, `stage${stage}.json`);

beforeAll(() => {
  mkdirSync(videos);
  cpSync(join(oracle, 'data/images'), images, { recursive: true });
  cpSync(join(fixtures, 'clips/bbb_vp9.webm'), join(videos, 'clip.webm'));
  for (const name of ['movie_train.pkl', 'movie_train.json']) {
    cpSync(join(oracle, 'data/feats', name), join(videos, name));
  }
  const talk = (...turns: string[]) =>
    turns.map((value, index) => ({ from: index % 2 === 0 ? 'human' : 'gpt', value }));
  const media = (index: number) =>
    index % 6 === 5 ? { video: 'clip.webm' } : { image: `im${index % 4}.png` };
  const write = (stage: number, records: object[]) => writeFileSync(list(stage), JSON.stringify(records));
  const records = Array.from({ length: 12 }, (_, index) => index);
  write(
    1,
    records.map((index) => ({
      id: `a${index}`,
      ...media(index),
      conversations: talk('Describe it.\n<image>', `It shows ${index} cats.`),
    })),
  );
  write(
    2,
    records.map((index) => ({
      id: `b${index}`,
      ...(index % 5 === 4 ? {} : media(index)),
      conversations: talk(
        ...[index % 5 === 4 ? 'Who talks?' : '<image>\nWhat is it?', `It is boat ${index}.`],
        ...(index % 2 === 0 ? ['And then?', 'Nothing else.'] : []),
      ),
    })),
  );
  write(
    3,
    [0, 1, 2].map((index) => ({
      id: `c${index}`,
      video: 'movie_train.pkl',
      conversations: talk('<image>\nWho is in it?', `Person ${index}.`),
    })),
  );
});

/** The recipe's published numbers, but for the recorded model's sizes and a batch that a test can wait for. */
const toy = [
  ...['--dtype', 'f32', '--device', 'cpu', '--devices', '1', '--batch-size', '2', '--accumulation', '1'],
  ...[
    '--set',
    'model.queryCount=6',
    '--set',
    'model.imageSize=null',
    '--set',
    'compute.activationCheckpointing=false',
  ],
  ...['--set', 'model.sizes.vision={"width":32,"depth":2,"heads":2,"mlpWidth":139}'],
];
const media = ['--images', images, '--videos', videos];
const base = ['--llm', join(oracle, 'llm'), '--vision', join(oracle, 'eva_vit_g.pth')];
const qFormer = ['--query-model', join(oracle, 'instruct_blip_vicuna7b_trimmed.pth')];

function stage1(output: string, ...more: string[]): string[] {
  const files = ['--data', list(1), ...media, ...base, ...qFormer, '-o', join(work, output)];
  return ['train', 'video-7b-stage1', ...files, ...toy, '--save-every', '2', ...more];
}

interface Line {
  step: number;
  loss: number | null;
  learningRate: number;
  failures: { id: string; reason: string }[];
}

function metrics(output: string): Line[] {
  return readFileSync(join(work, output, 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
}

const losses = (output: string) => metrics(output).map(({ step, loss }) => [step, loss]);

describe('llamavid train', () => {
  it('trains stage 1, 2 and 3, and the result answers', async () => {
    const first = await llamavid(stage1('whole', '--json', '--quiet'));
    expect(first).toMatchObject({ exitCode: 0, stderr: '' });
    const summary = JSON.parse(first.stdout);
    expect(summary).toMatchObject({ steps: 6, samples: 12, failures: [] });
    expect(Number.isFinite(summary.loss)).toBe(true);
    const written = readdirSync(join(work, 'whole'));
    for (const name of [
      'mm_projector.bin',
      'config.json',
      'metrics.jsonl',
      'loss.svg',
      'report.html',
      'run.json',
    ]) {
      expect(written).toContain(name);
    }
    expect(written.some((name) => name.startsWith('events.out.tfevents.'))).toBe(true);

    const second = await llamavid([
      ...['train', 'video-7b-stage2', '--data', list(2), ...media, ...base, '--adapter', join(work, 'whole')],
      ...['-o', join(work, 'stage2'), ...toy, '--accumulation', '2', '--json'],
    ]);
    expect(second.stderr).toContain('step 3/3 · loss ');
    expect(second.exitCode).toBe(0);

    const third = await llamavid([
      ...['train', 'long-video-7b-stage3', '--data', list(3), ...media, '--model', join(work, 'stage2')],
      ...['-o', join(work, 'stage3'), ...toy, '--batch-size', '1', '--max-length', '2048', '--quiet'],
    ]);
    expect(third).toMatchObject({ exitCode: 0, stderr: '' });
    const config = JSON.parse(readFileSync(join(work, 'stage3/config.json'), 'utf8'));
    expect(config.rope_scaling).toEqual({ type: 'linear', factor: 8 });

    for (const folder of ['stage2', 'stage3']) {
      const answer = await llamavid([
        ...['ask', join(images, 'im0.png'), 'What is it?', '--model', join(work, folder)],
        ...['--max-new-tokens', '3', '--json', '--quiet', '--device', 'cpu'],
      ]);
      expect(answer.exitCode, answer.stdout).toBe(0);
      expect(JSON.parse(answer.stdout).tokenIds.length).toBeGreaterThan(0);
    }
  });

  it('killed ten times and resumed has the losses of a run that was not', async () => {
    const long = ['--epochs', '25', '--quiet'];
    expect((await llamavid(stage1('straight', ...long))).exitCode).toBe(0);
    const seconds = JSON.parse(
      (await llamavid(stage1('straight', ...long, '--resume', '--json'))).stdout,
    ).seconds;
    let kills = 0;
    for (let attempt = 0; attempt < 10; attempt += 1) {
      // A short while behind the first step: within a step, while saving, between two. Ten of these are less than a run.
      const { signal } = await llamavid(stage1('killed', '--epochs', '25', '--resume'), {
        watch: (text, kill) => {
          if (text.includes('step ')) setTimeout(kill, Math.random() * seconds * 80, 'SIGKILL');
        },
      });
      if (signal === 'SIGKILL') kills += 1;
    }
    expect(kills).toBeGreaterThanOrEqual(8);
    // Before the first step too: while the model is loaded.
    await llamavid(stage1('killed', ...long, '--resume'), { killAfter: 150 + 300 * Math.random() });
    const last = await llamavid(stage1('killed', ...long, '--resume'));
    expect(last, last.stderr).toMatchObject({ exitCode: 0 });
    expect(losses('killed')).toEqual(losses('straight'));
    const [killed, straight] = ['killed', 'straight'].map((name) => join(work, name, 'mm_projector.bin'));
    expect(readFileSync(killed as string).equals(readFileSync(straight as string))).toBe(true);
    // Nothing half-written is left.
    expect(readdirSync(join(work, 'killed')).filter((name) => /part|unfinished|removed/.test(name))).toEqual(
      [],
    );
  }, 300_000);

  it('stops at once on a second Ctrl-C', async () => {
    let presses = 0;
    const run = await llamavid(stage1('twice', '--epochs', '500', '--save-every', '10000'), {
      watch: (text, kill) => {
        if (presses > 0 || !text.includes('step 1/')) return;
        presses = 2;
        kill('SIGINT');
        setTimeout(kill, 1, 'SIGINT');
      },
    });
    // Where the step ended before the second press, the checkpoint was saved; else there is none.
    expect(run.exitCode).toBe(130);
  });

  it('trains adapters, merged or by themselves', async () => {
    const stage2 = (output: string, ...more: string[]) => [
      ...['train', 'video-7b-stage2', '--data', list(2), ...media, ...base, '--adapter', join(work, 'whole')],
      ...['-o', join(work, output), ...toy, '--lora', '4', '--quiet', ...more],
    ];
    const plan = await llamavid([...stage2('planned'), '--plan', '--json']);
    const { parts } = JSON.parse(plan.stdout);
    expect(parts.map(({ name, trained }: { name: string; trained: number }) => [name, trained > 0])).toEqual([
      ['visual encoder', false],
      ['token generator', true],
      ['language model', false],
      ['adapters', true],
    ]);
    for (const [output, more] of [
      ['merged', []],
      ['apart', ['--lora-apart']],
    ] as const) {
      const run = await llamavid(stage2(output, ...more));
      expect(run, run.stderr).toMatchObject({ exitCode: 0 });
      expect(existsSync(join(work, output, 'adapter_model.safetensors'))).toBe(output === 'apart');
    }
    // What is written by itself is run beside its base.
    cpSync(join(oracle, 'llm'), join(work, 'llm'), { recursive: true });
    cpSync(join(oracle, 'eva_vit_g.pth'), join(work, 'eva_vit_g.pth'));
    const answers = [];
    for (const folder of ['merged', 'apart']) {
      const answer = await llamavid([
        ...['ask', join(images, 'im0.png'), 'What is it?', '--model', join(work, folder)],
        ...['--max-new-tokens', '6', '--json', '--quiet', '--device', 'cpu'],
      ]);
      expect(answer.exitCode, answer.stdout).toBe(0);
      answers.push(JSON.parse(answer.stdout).tokenIds);
    }
    expect(answers[1]).toEqual(answers[0]);
  });

  it('stops where the loss is no number, and names the step and its records', async () => {
    const run = await llamavid([
      ...stage1('diverged', '--epochs', '30', '--json', '--quiet', '--learning-rate', '10'),
      ...['--set', 'optimizer.warmupRatio=0', '--set', 'optimizer.weightDecay=10'],
      ...['--set', 'optimizer.schedule=constant', '--set', 'optimizer.epsilon=1e-30'],
    ]);
    const { error } = JSON.parse(run.stdout);
    expect([run.exitCode, error.code]).toEqual([1, 'TRAINING_DIVERGED']);
    expect(error.message).toMatch(/^step \d+: the .* is (NaN|inf); records: a\d+/);
  });

  it('finishes the step on Ctrl-C, saves, exits with 130 and goes on', async () => {
    let sent = false;
    const stopped = await llamavid(stage1('stopped', '--epochs', '50', '--save-every', '1000'), {
      watch: (text, kill) => {
        if (sent || !text.includes('step 1/')) return;
        sent = true;
        kill('SIGINT');
      },
    });
    expect(stopped.exitCode).toBe(130);
    expect(stopped.stderr).toMatch(
      /finishing the step[\s\S]*error: training stopped behind step \d+ of 300\nhint: .*resume/,
    );
    const step = metrics('stopped').length;
    expect(existsSync(join(work, `stopped/checkpoint-${step}`))).toBe(true);
    const json = await llamavid(
      stage1('stopped', '--epochs', '50', '--save-every', '1000', '--resume', '--json'),
      {
        watch: (text, kill) => {
          if (text.includes(`step ${step + 1}/`)) kill('SIGINT');
        },
      },
    );
    expect([json.exitCode, JSON.parse(json.stdout).error.code]).toEqual([130, 'ABORTED']);
  });

  it('plans', async () => {
    const plan = [...stage1('planned', '--plan').filter((flag) => flag !== '--quiet')];
    const text = await llamavid(plan);
    expect(text.exitCode, text.stderr).toBe(0);
    for (const line of [
      /records a step +2 per device × 1 accumulated × 1 devices = 2/,
      /steps +6, of which 1 warm/,
      /memory +/,
    ]) {
      expect(text.stdout).toMatch(line);
    }
    const json = await llamavid([...plan, '--json']);
    expect(JSON.parse(json.stdout)).toMatchObject({ records: 12, steps: 6, recordsPerStep: 2 });
    expect(existsSync(join(work, 'planned'))).toBe(false);
  });

  it('reports records that fail and trains on the others', async () => {
    const records = JSON.parse(readFileSync(list(1), 'utf8'));
    records[3].image = 'nowhere.png';
    records[4].image = 'broken.png';
    writeFileSync(join(images, 'broken.png'), 'no picture');
    records[7].conversations = [];
    const data = join(work, 'with-failures.json');
    writeFileSync(data, JSON.stringify(records));
    const run = await llamavid([...stage1('failures', '--json'), '--data', data]);
    expect(run.exitCode, run.stderr).toBe(0);
    const { failures, samples } = JSON.parse(run.stdout);
    expect(failures.map(({ id }: { id: string }) => id).sort()).toEqual(['a3', 'a4', 'a7']);
    expect(samples).toBe(9);
    expect(run.stderr).toContain('note: record a3 failed:');
    expect(metrics('failures').flatMap((line) => line.failures)).toHaveLength(3);
  });

  it('stops when nothing can be read', async () => {
    const records = JSON.parse(readFileSync(list(1), 'utf8'));
    for (const record of records) record.image = 'nowhere.png';
    const data = join(work, 'all-fail.json');
    writeFileSync(data, JSON.stringify(records.map(({ video: _, ...record }: { video?: string }) => record)));
    const run = await llamavid([...stage1('all-fail', '--json', '--quiet'), '--data', data]);
    expect([run.exitCode, JSON.parse(run.stdout).error.code]).toEqual([1, 'DATA_INVALID']);
  });

  it('lets one run at a time into a folder', async () => {
    let second: Awaited<ReturnType<typeof llamavid>> | undefined;
    let begun: Promise<void> | undefined;
    const first = await llamavid(stage1('shared', '--epochs', '200'), {
      watch: (text, kill) => {
        if (begun !== undefined || !text.includes('step 1/')) return;
        begun = llamavid(stage1('shared', '--epochs', '200', '--resume', '--json', '--quiet')).then((run) => {
          second = run;
          kill('SIGINT');
        });
      },
    });
    await begun;
    expect(first.exitCode).toBe(130);
    expect([second?.exitCode, JSON.parse(second?.stdout ?? '{}').error.code]).toEqual([1, 'STORE_LOCKED']);
    const again = await llamavid(stage1('shared', '--epochs', '200', '--json', '--quiet'));
    expect([again.exitCode, JSON.parse(again.stdout).error.code]).toEqual([2, 'INVALID_ARGUMENT']);
    const other = await llamavid(
      stage1('shared', '--epochs', '200', '--resume', '--seed', '5', '--json', '--quiet'),
    );
    expect(JSON.parse(other.stdout).error.message).toContain('seed 42, and is to go on with 5');
  });

  for (const [what, args] of Object.entries({
    'a rate of 0': ['--learning-rate', '0'],
    'a rate that is no number': ['--learning-rate', 'NaN'],
    'a negative rate': ['--learning-rate=-1e-3'],
    'an unknown field': ['--set', 'optimizer.speed=1'],
    'a field without a value': ['--set', 'optimizer'],
    'half a batch': ['--batch-size', '0.5'],
    'LoRA settings without LoRA': ['--lora-alpha', '8'],
    'a failure limit above 1': ['--failure-limit', '2'],
  })) {
    it(`exits with 2 on ${what}`, async () => {
      const run = await llamavid([...stage1('never', '--json', '--quiet'), ...args]);
      expect([run.exitCode, JSON.parse(run.stdout).error.code]).toEqual([2, 'INVALID_ARGUMENT']);
      expect(existsSync(join(work, 'never'))).toBe(false);
    });
  }

  it('says what is wrong with its files', async () => {
    const broken = join(work, 'broken.json');
    writeFileSync(broken, readFileSync(list(1)).subarray(0, 900));
    const notJson = join(work, 'not.json');
    writeFileSync(notJson, 'id,image\n1,a.png\n');
    for (const [code, args] of [
      ['DATA_INVALID', ['--data', broken]],
      ['DATA_INVALID', ['--data', notJson]],
      ['DATA_INVALID', ['--data', join(work, 'nowhere.json')]],
      ['MEDIA_NOT_FOUND', ['--images', join(work, 'nowhere')]],
      ['MODEL_NOT_FOUND', ['--llm', join(work, 'nowhere')]],
      // Another model's Q-Former: its rows are 32 wide, this recipe's 24.
      [
        'MODEL_INVALID',
        ['--query-model', join(fixtures, 'oracle/video-mean/instruct_blip_vicuna7b_trimmed.pth')],
      ],
      ['INVALID_ARGUMENT', ['--model', join(oracle, 'model')]],
    ] as const) {
      const run = await llamavid([...stage1('bad-files', '--json', '--quiet'), ...args]);
      const { error } = JSON.parse(run.stdout);
      expect([error.code, error.hint !== null], `${args}: ${error.message}`).toEqual([code, true]);
      rmSync(join(work, 'bad-files'), { recursive: true, force: true });
    }
  });
});

describe('llamavid data', () => {
  it('checks a list', async () => {
    const good = await llamavid(['data', 'check', list(1), ...media, '--json', '--quiet']);
    expect(good.exitCode, good.stdout).toBe(0);
    expect(JSON.parse(good.stdout)).toMatchObject({ records: 12, images: 10, videos: 2, findings: [] });
    const records = JSON.parse(readFileSync(list(1), 'utf8'));
    records[0].conversations[0].value = 'no tag';
    records[1].image = 'nowhere.png';
    records[2].conversations.reverse();
    writeFileSync(join(videos, 'broken.mp4'), 'no video');
    records[5].video = 'broken.mp4';
    const data = join(work, 'bad-records.json');
    writeFileSync(data, JSON.stringify(records));
    const bad = await llamavid(['data', 'check', data, ...media, '--quiet']);
    expect(bad.exitCode).toBe(1);
    for (const id of ['a0', 'a1', 'a2', 'a5'])
      expect(bad.stdout).toMatch(new RegExp(`^error: record \\d+ \\(${id}\\): `, 'm'));
    expect(bad.stdout).toContain('4 cannot be trained on');
  });

  it('tells what is missing of the published lists', async () => {
    const root = join(work, 'published');
    mkdirSync(join(root, 'data/LLaMA-VID-Pretrain/images'), { recursive: true });
    const run = await llamavid(['data', 'published', root, '--json']);
    expect(run.exitCode).toBe(1);
    const { lists, complete } = JSON.parse(run.stdout);
    expect([lists.length, complete]).toEqual([6, false]);
  });
});
