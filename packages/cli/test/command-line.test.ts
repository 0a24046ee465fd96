import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { llamavid, main } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const model = join(fixtures, 'random-model');
const clip = join(fixtures, 'clips/bbb_vp9.webm');
const picture = join(fixtures, 'oracle/image-224/data/images/im0.png');
const shapes = join(fixtures, 'world/media/multi-010.mp4');
const long = join(fixtures, 'world/media/long-000.mp4');
const said = join(fixtures, 'world/media/long-000.srt');

const ask = (...args: string[]) => llamavid(['ask', ...args, '--device', 'cpu', '--dtype', 'f32']);

describe('llamavid', () => {
  it('prints help and version', async () => {
    const [help, askHelp, version] = await Promise.all([
      llamavid(['--help']),
      llamavid(['ask', '--help']),
      llamavid(['--version']),
    ]);
    expect([help.exitCode, askHelp.exitCode, version.exitCode]).toEqual([0, 0, 0]);
    expect(help.stdout).toContain('Exit codes');
    for (const flag of [
      ...[
        '--model',
        '--device',
        '--dtype',
        '--strict',
        '--load',
        '--temperature',
        '--top-p',
        '--top-k',
        '--seed',
      ],
      ...[
        '--max-new-tokens',
        '--conversation',
        '--fps',
        '--frames',
        '--start',
        '--end',
        '--subtitles',
        '--store',
      ],
      ...['--json', '--dry-run', '--quiet'],
    ]) {
      expect(askHelp.stdout).toContain(flag);
    }
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it('prints help and exits with 2 without a command', async () => {
    const { exitCode, stdout, stderr } = await llamavid([]);
    expect([exitCode, stdout]).toEqual([2, '']);
    expect(stderr).toContain('Usage: llamavid');
    expect(stderr).toMatch(/\nerror: .+\nhint: .+\n$/);
  });

  for (const [what, args] of Object.entries({
    'an unknown command': ['sing'],
    'an unknown option': ['ask', clip, 'What?', '--loud'],
    'no question': ['ask', clip],
    'nothing to ask': ['ask'],
    'an empty question': ['ask', clip, ' '],
    'an unknown device': ['ask', clip, 'What?', '--device', 'abacus'],
    'several devices': ['ask', clip, 'What?', '--device', 'cuda:0,1'],
    'an unknown dtype': ['ask', clip, 'What?', '--dtype', 'f8'],
    'an unknown number of bits': ['ask', clip, 'What?', '--load', '2bit'],
    'an unknown split': ['ask', clip, 'What?', '--split', 'rows'],
    'an unknown cache': ['ask', clip, 'What?', '--kv-cache', '2bit'],
    'an unknown template': ['ask', clip, 'What?', '--conversation', 'nobody'],
    'a negative temperature': ['ask', clip, 'What?', '--temperature', '-1'],
    'top-p above 1': ['ask', clip, 'What?', '--top-p', '1.5'],
    'half a token': ['ask', clip, 'What?', '--max-new-tokens', '0.5'],
    'no frames a second': ['ask', clip, 'What?', '--fps', '0'],
    'an end before the start': ['ask', clip, 'What?', '--start', '5', '--end', '2'],
    'both fps and frames': ['ask', clip, 'What?', '--fps', '2', '--frames', '4'],
    'subtitles for two videos': ['ask', clip, clip, 'What?', '--subtitles', said],
    'subtitles for none': ['ask', 'What?', '--subtitles', said],
    'a store without a name': ['ask', clip, 'What?', '--store', ''],
    'an unknown number of stored bits': ['ask', clip, 'What?', '--store-bits', '4'],
    'an empty question among several': ['ask', clip, ' ', 'What?'],
    'a dry run of two questions': ['ask', clip, 'What?', 'Why?', '--dry-run'],
  })) {
    it(`exits with 2 on ${what}`, async () => {
      const plain = await llamavid(args);
      expect(plain.exitCode).toBe(2);
      expect(plain.stdout).toBe('');
      expect(plain.stderr).toMatch(/^error: .+\n(hint: .+\n)?$/);
      if (args[0] !== 'ask') return;
      const json = await llamavid([...args, '--json']);
      expect(json.exitCode).toBe(2);
      expect(json.stderr).toBe('');
      expect(JSON.parse(json.stdout)).toEqual({
        error: {
          code: 'INVALID_ARGUMENT',
          message: expect.any(String),
          hint: json.stdout.includes('"hint":null') ? null : expect.any(String),
        },
      });
    });
  }

  for (const [code, args] of Object.entries({
    MEDIA_NOT_FOUND: ['ask', 'nowhere.mp4', 'What?', '--model', model],
    MODEL_NOT_FOUND: ['ask', clip, 'What?', '--model', 'nowhere'],
    MEDIA_UNREADABLE: ['ask', join(model, 'config.json'), 'What?', '--model', model],
  })) {
    it(`exits with 1 and tells ${code}`, async () => {
      const [plain, json] = await Promise.all([
        llamavid([...args, '--quiet']),
        llamavid([...args, '--json', '--quiet']),
      ]);
      expect([plain.exitCode, json.exitCode]).toEqual([1, 1]);
      expect(plain.stderr).toMatch(/^error: .+\nhint: .+\n$/);
      expect(JSON.parse(json.stdout)).toEqual({
        error: { code, message: expect.any(String), hint: expect.any(String) },
      });
    });
  }

  it('tells of broken and missing subtitles before a model is loaded, or clearly', async () => {
    const args = ['ask', clip, 'What?', '--model', model, '--json', '--quiet', '--subtitles'];
    for (const [path, code] of [
      ['nowhere.srt', 'MEDIA_NOT_FOUND'],
      [clip, 'DATA_INVALID'],
    ] as const) {
      const { exitCode, stdout } = await llamavid([...args, path]);
      expect([exitCode, JSON.parse(stdout).error.code]).toEqual([1, code]);
    }
  });
});

describe('llamavid ask', () => {
  it('writes the same answer as text and as JSON, and progress elsewhere', async () => {
    const args = [clip, 'What happens?', '--model', model, '--max-new-tokens', '16'];
    const [text, json] = await Promise.all([ask(...args), ask(...args, '--json', '--quiet')]);
    expect([text.exitCode, json.exitCode]).toEqual([0, 0]);
    expect(text.stderr).toContain('loading the model');
    expect(json.stderr).toBe('');
    const result = JSON.parse(json.stdout);
    expect(text.stdout).toBe(`${result.answer}\n`);
    expect(result).toEqual({
      answer: expect.any(String),
      tokenIds: expect.any(Array),
      finishReason: expect.toBeOneOf(['stop', 'length']),
      usage: {
        promptTokens: expect.any(Number),
        visualTokens: result.sampling.frames * 2,
        completionTokens: result.tokenIds.length,
      },
      sampling: {
        source: {
          path: clip,
          durationSeconds: expect.any(Number),
          fps: expect.any(Number),
          frameCount: expect.toBeOneOf([expect.any(Number), null]),
          width: expect.any(Number),
          height: expect.any(Number),
          codec: 'vp9',
        },
        fps: 1,
        frames: expect.any(Number),
        timestamps: expect.any(Array),
        dropped: 0,
        omitted: 0,
        notes: expect.any(Array),
      },
      work: { framesDecoded: expect.any(Number), framesEncoded: result.sampling.frames, storeHit: false },
      timings: {
        loadMs: expect.any(Number),
        decodeMs: expect.any(Number),
        encodeMs: expect.any(Number),
        tokensMs: expect.any(Number),
        prefillMs: expect.any(Number),
        firstTokenMs: expect.any(Number),
        totalMs: expect.any(Number),
        tokensPerSecond: expect.any(Number),
        peakRssBytes: expect.any(Number),
      },
      model: { name: 'random-model', dtype: 'f32', device: 'cpu' },
    });
    expect(result.tokenIds.length).toBeLessThanOrEqual(16);
  });

  it('lets devices share each layer, and refuses one device that has nobody to share with', async () => {
    const [shared, alone] = await Promise.all([
      llamavid(['ask', 'What is there?', '--json', '--device', 'cpu,cpu', '--split', 'tensor']),
      llamavid(['ask', 'What is there?', '--device', 'cpu', '--split', 'tensor', '--quiet']),
    ]);
    expect(shared.exitCode).toBe(0);
    expect(JSON.parse(shared.stdout)).toMatchObject({ model: { name: 'tiny', device: 'cpu,cpu' } });
    expect(alone.exitCode).toBe(2);
    expect(alone.stderr).toMatch(/^error: .+nothing to share\nhint: .+\n$/);
  });

  it('takes several files, a part of a video, and none at all', async () => {
    const [several, part, none] = await Promise.all([
      ask(
        clip,
        picture,
        'What differs?',
        '--model',
        model,
        '--frames',
        '3',
        '--max-new-tokens',
        '2',
        '--json',
      ),
      ask(clip, 'What?', '--model', model, '--start', '1', '--end', '3', '--max-new-tokens', '2', '--json'),
      ask('Who are you?', '--model', model, '--max-new-tokens', '2', '--json'),
    ]);
    const counts = JSON.parse(several.stdout).samplings.map(
      (sampling: { frames: number }) => sampling.frames,
    );
    expect(counts).toEqual([3, 1]);
    const { timestamps } = JSON.parse(part.stdout).sampling;
    expect(Math.min(...timestamps)).toBeGreaterThanOrEqual(1);
    expect(Math.max(...timestamps)).toBeLessThanOrEqual(3);
    expect(JSON.parse(none.stdout).sampling).toBeNull();
  });

  it('answers with the embedded model when none is named', async () => {
    const { exitCode, stdout } = await ask(shapes, 'what do you see first?', '--json', '--quiet');
    expect(exitCode).toBe(0);
    const { answer, model: used } = JSON.parse(stdout);
    expect(used.name).toBe('tiny');
    expect(answer).not.toBe('');
  });

  it('reads subtitles, and shows the prompt without answering', async () => {
    const args = [long, 'what is the prize?', '--subtitles', said, '--quiet'];
    const { stdout } = await ask(...args, '--json');
    const { subtitles, usage } = JSON.parse(stdout);
    expect(subtitles).toEqual({ path: said, count: 28, notes: [] });

    const [text, json] = await Promise.all([ask(...args, '--dry-run'), ask(...args, '--dry-run', '--json')]);
    expect([text.exitCode, json.exitCode]).toEqual([0, 0]);
    expect(text.stdout).toContain(
      '\n   39.00 s  <image><image>i say the prize is cake .\n   40.00 s  <image><image>\n',
    );
    expect(text.stdout).toMatch(/Now the movie end\.\nwhat is the prize\? ASSISTANT:\n/);
    const preview = JSON.parse(json.stdout);
    expect(preview.usage).toEqual({ promptTokens: usage.promptTokens, visualTokens: usage.visualTokens });
    const written = text.stdout.slice(0, text.stdout.indexOf('\n\nquery model'));
    expect(written.replaceAll(/\n +\d+\.\d\d s {2}/g, '')).toBe(preview.prompt);
    expect(text.stdout).toContain(`${usage.promptTokens} tokens`);
  });

  it('finds subtitles by itself, and says when there are none', async () => {
    const args = ['What?', '--subtitles', 'auto', '--dry-run', '--model', model];
    const [beside, none] = await Promise.all([ask(long, ...args), ask(clip, ...args)]);
    expect(beside.stdout).toContain('i say the prize is cake .');
    expect(none.exitCode).toBe(0);
    expect(none.stderr).toContain('no file beside the video');
  });

  it('refuses a video that the context has no room for before it loads the model, and takes fewer tokens', async () => {
    const args = [long, 'What?', '--model', model, '--json', '--max-new-tokens', '4'];
    const [refused, thinned] = await Promise.all([ask(...args), ask(...args, '--max-visual-tokens', '100')]);
    expect(refused.exitCode).toBe(1);
    expect(JSON.parse(refused.stdout).error).toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      hint: expect.stringContaining('--max-visual-tokens'),
    });
    expect(refused.stderr).not.toContain('loading');
    const { sampling, usage } = JSON.parse(thinned.stdout);
    expect(sampling).toMatchObject({ frames: 50, omitted: 225 });
    expect(usage.visualTokens).toBe(100);
  });

  it('answers several questions, of the command line or a file, each as alone', async () => {
    const questions = ['what do you see first?', 'how many scenes are there?', 'Why?'];
    const folder = mkdtempSync(join(tmpdir(), 'llamavid-questions-'));
    try {
      const lines = join(folder, 'questions.txt');
      writeFileSync(lines, `\ufeff${questions.join('\r\n\n')}\n`);
      const objects = join(folder, 'questions.jsonl');
      writeFileSync(
        objects,
        questions.map((question, at) => JSON.stringify(at ? { question } : question)).join('\n'),
      );
      const store = join(folder, 'store');
      const args = ['--store', store, '--quiet', '--max-new-tokens', '12'];
      const alone: { answer: string; tokenIds: number[] }[] = [];
      for (const question of questions)
        alone.push(JSON.parse((await ask(shapes, question, ...args, '--json')).stdout));
      const runs = await Promise.all([
        ask(shapes, ...questions, ...args, '--json'),
        ask(shapes, '--questions', lines, ...args, '--json'),
        ask(shapes, '--questions', objects, ...args, '--json'),
      ]);
      for (const { exitCode, stdout, stderr } of runs) {
        expect([exitCode, stderr]).toEqual([0, '']);
        const results = stdout
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line));
        expect(results.map(({ question, tokenIds, work }) => [question, tokenIds, work.storeHit])).toEqual(
          questions.map((question, index) => [question, alone[index]?.tokenIds, true]),
        );
        expect(Object.keys(results[0])).toEqual(['question', ...Object.keys(alone[0] ?? {})]);
      }
      const text = await ask(shapes, ...questions, ...args);
      expect(text.stdout).toBe(
        questions.map((question, index) => `${question}\n${alone[index]?.answer}\n`).join('\n'),
      );

      // One that fails is told in its place, and the others are answered.
      const tooLong = `is ${'there '.repeat(600)}a star?`;
      const some = await ask(shapes, tooLong, 'Why?', '--frames', '2', '--model', model, ...args, '--json');
      const [failed, answered] = some.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line));
      expect([some.exitCode, failed]).toEqual([
        1,
        { question: tooLong, error: expect.objectContaining({ code: 'CONTEXT_OVERFLOW' }) },
      ]);
      expect([answered.question, answered.finishReason]).toEqual(['Why?', expect.any(String)]);
      for (const [name, content, code] of [
        ['empty.txt', '\n\n', 'DATA_INVALID'],
        ['numbers.jsonl', '{"question": 7}', 'DATA_INVALID'],
        ['broken.jsonl', '"Who?"\n{"question":', 'DATA_INVALID'],
        ['zeros.txt', '\0\0', 'DATA_INVALID'],
        ['video.txt', readFileSync(shapes), 'DATA_INVALID'],
        ['none.txt', undefined, 'MEDIA_NOT_FOUND'],
      ] as const) {
        const path = join(folder, name);
        if (content !== undefined) writeFileSync(path, content);
        const { exitCode, stdout } = await ask(shapes, '--questions', path, '--json');
        expect([exitCode, JSON.parse(stdout).error], name).toEqual([
          1,
          expect.objectContaining({ code, message: expect.stringContaining(name) }),
        ]);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('takes no missing file for a question', async () => {
    for (const path of ['nowhere.mp4', 'my film.mp4', '/my films/one', './my films', 'nowhere']) {
      const { stdout } = await ask(path, 'What is it?', '--json');
      expect(JSON.parse(stdout).error, path).toMatchObject({ code: 'MEDIA_NOT_FOUND' });
    }
  });

  it('hears speech where nothing is written', async () => {
    const film = join(fixtures, 'clips/bbb_720p_h264_aac.mp4');
    const args = ['What?', '--model', model, '--frames', '2', '--max-new-tokens', '2', '--json'];
    const speech = ['--subtitles', 'auto', '--speech-model', join(fixtures, 'speech')];
    const { exitCode, stdout, stderr } = await ask(film, ...args, ...speech);
    expect([exitCode, stderr]).toEqual([0, expect.stringContaining('seconds of speech')]);
    // Random weights hear nothing that they are sure of.
    expect(JSON.parse(stdout).subtitles).toBeUndefined();
    const unnamed = await ask(film, ...args, '--subtitles', 'speech');
    expect([unnamed.exitCode, JSON.parse(unnamed.stdout).error.hint]).toEqual([
      2,
      expect.stringContaining('--speech-model'),
    ]);
    const unknown = await ask(film, ...args, '--subtitles', 'auto', '--speech-model', 'nowhere');
    expect(JSON.parse(unknown.stdout).error.code).toBe('MODEL_NOT_FOUND');
  });

  it('writes a timeline instead of an answer, or beside it', async () => {
    const args = [shapes, 'what do you see first?', '--quiet'];
    const [json, vtt, both] = await Promise.all([
      ask(...args, '--timeline', 'json'),
      ask(...args, '--timeline', 'vtt'),
      ask(...args, '--timeline', 'json', '--json', '--max-new-tokens', '2'),
    ]);
    const timeline = JSON.parse(json.stdout);
    expect(timeline.frames.length).toBeGreaterThan(1);
    expect(vtt.stdout.startsWith('WEBVTT\n')).toBe(true);
    expect(vtt.stdout.match(/ --> /g) ?? []).toHaveLength(timeline.moments.length);
    expect(JSON.parse(both.stdout)).toMatchObject({ answer: expect.any(String), timeline });
    // Without an answer the context has no limit.
    const whole = await ask(long, 'What?', '--model', model, '--timeline', 'json', '--quiet');
    expect(JSON.parse(whole.stdout).frames).toHaveLength(275);
    const several = await ask(shapes, clip, 'What?', '--timeline', 'json', '--frames', '2');
    expect([several.exitCode, several.stderr]).toEqual([2, expect.stringContaining('for one video')]);
  });

  it('cancels at the first Ctrl-C', async () => {
    let pressed = false;
    const { exitCode, stdout } = await llamavid(
      ['ask', clip, 'What happens?', '--model', model, '--max-new-tokens', '400', '--json', '--fps', '10'],
      {
        watch: (text, kill) => {
          if (!pressed && text.includes('answering')) kill('SIGINT');
          pressed ||= text.includes('answering');
        },
      },
    );
    expect(exitCode).toBe(130);
    expect(JSON.parse(stdout).error.code).toBe('ABORTED');
  });

  it('ends quietly when nobody reads the answer', async () => {
    const child = spawn(
      process.execPath,
      [main, 'ask', picture, 'What is it?', '--model', model, '--max-new-tokens', '200', '--quiet'],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    child.stdout.destroy();
    let stderr = '';
    child.stderr.on('data', (text) => {
      stderr += text;
    });
    expect(await new Promise((resolve) => child.on('close', resolve))).toBe(0);
    expect(stderr).toBe('');
  });
});

describe('llamavid chat', () => {
  const chat = (input: string, ...args: string[]) =>
    llamavid(
      [
        'chat',
        ...args,
        '--model',
        model,
        '--device',
        'cpu',
        '--dtype',
        'f32',
        '--max-new-tokens',
        '8',
        '--quiet',
      ],
      {
        input,
      },
    );

  it('answers every line of a pipe, and ends with it', async () => {
    const { exitCode, stdout, stderr } = await chat(
      '/media\nWhat happens?\n\nAnd then?\n',
      clip,
      '--frames',
      '3',
    );
    expect(stderr).toBe('');
    expect(exitCode).toBe(0);
    expect(stdout.startsWith(`${clip}\n`)).toBe(true);
    const alone = await ask(
      clip,
      'What happens?',
      '--model',
      model,
      '--frames',
      '3',
      '--max-new-tokens',
      '8',
      '--quiet',
    );
    expect(stdout.slice(clip.length + 1).startsWith(alone.stdout)).toBe(true);
    expect(stdout.length).toBeGreaterThan(clip.length + 1 + alone.stdout.length);
  });

  it('opens files, forgets what was said, leaves', async () => {
    const { exitCode, stdout } = await chat(
      `/help\n/media\n/open "${picture}"\n/media\nWhat is it?\n/reset\nWhat is it?\n/quit\nnever asked\n`,
    );
    expect(exitCode).toBe(0);
    expect(stdout).toContain('/open <file>');
    expect(stdout).toContain('no files\n');
    const answers = stdout.split(`${picture}\n`)[1] ?? '';
    expect(answers.slice(0, answers.length / 2)).toBe(answers.slice(answers.length / 2));
  });

  it('goes on after a mistake, and shows it in the exit code', async () => {
    const { exitCode, stdout, stderr } = await chat('/dance\n/open nowhere.mp4\nWho are you?\n');
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/error: \/dance.*\nhint: .*\nerror: nowhere\.mp4.*\nhint: .*\n/);
    expect(stdout.trim()).not.toBe('');
  });
});
